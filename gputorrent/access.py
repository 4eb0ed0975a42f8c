"""The outermost layer of HTTP and of WebSockets: every request gets its id, every answer the header with it,
the log a line (of a WebSocket when it has closed). What goes past ASGI (`gputorrent.connection`) asks for its
line by `over`.

The line has no query string, no body and no key, only the key's name. GPUTORRENT_ACCESS_LOG chooses: ``all``,
``off``, or ``some``, which leaves out what goes well and is known otherwise: completions (the ledger has
them), agents' messages, probes and static files. It also leaves out all refusals of strangers (401) but five
a second, so that guessing keys neither fills the disk nor keeps the process busy; the next line after those
says how many they were (`unlogged`), and the metrics count them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from gputorrent import tracing
from gputorrent.chosen import settings
from gputorrent.tracing import Trace

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_KNOWN_OTHERWISE: Final = ("/nodes/", "/static/", "/healthz", "/readyz")
_ABNORMAL: Final = 1006  # the connection broke without a word
_LEFT: Final = 499  # the caller left before the answer began; the number is nginx's
_STRANGER: Final = 401
_STRANGERS_PER_SECOND: Final = 5


class Traced:
    """ASGI middleware for HTTP."""

    def __init__(self, app: App, strangers: Sparing | None = None) -> None:
        self._app = app
        self._strangers = strangers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = tracing.begin(scope["headers"])

        def stamped(message: dict[str, Any]) -> Awaitable[None]:  # no coroutine of its own for every chunk
            if message["type"] == "http.response.start":
                trace.stamp(message)
            return send(message)

        try:
            await self._app(scope, receive, stamped)
        finally:
            over(scope, trace, self._strangers)


class Sparing:
    """Which of many lines of a kind are written: so many in each second that begins with one."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._until, self._written = 0.0, 0
        self.left_out = 0
        """Since the last line that said so."""

    def wanted(self) -> bool:
        """Whether this one is written; what is not is counted."""
        if (now := self._clock()) >= self._until:
            self._until, self._written = now + 1.0, 0
        self._written += 1
        if self._written > self._per_second:
            self.left_out += 1
            return False
        return True

    def told(self) -> int:
        """How many were left out; they are told now."""
        left_out, self.left_out = self.left_out, 0
        return left_out


_strangers = Sparing(_STRANGERS_PER_SECOND)
"""Those of one process, by whichever way they come."""


class TracedSocket:
    """ASGI middleware for WebSockets."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = tracing.begin(scope["headers"])
        closed = 0

        async def heard() -> dict[str, Any]:
            nonlocal closed
            message = await receive()
            if message["type"] == "websocket.disconnect":
                closed = closed or message.get("code") or _ABNORMAL
            return message

        async def stamped(message: dict[str, Any]) -> None:
            nonlocal closed
            if message["type"] == "websocket.accept":
                message = {**message, "status": 101}
                trace.stamp(message)
                del message["status"]
            elif message["type"] == "websocket.close":
                closed = message.get("code", 1000)
            await send(message)

        try:
            await self._app(scope, heard, stamped)
        finally:
            if settings.ACCESS_LOG != "off":
                _note({**scope, "method": "WEBSOCKET"}, trace, closed=closed or _ABNORMAL)


def over(scope: Mapping[str, Any], trace: Trace, strangers: Sparing | None = None) -> None:
    """An HTTP request is over: its line, if it is to have one. Of the scope its `method` and `path` are read,
    and `raw_path`."""
    if wanted(scope["path"], trace):
        strangers = strangers or _strangers
        spares = trace.status == _STRANGER and settings.ACCESS_LOG == "some"
        if not spares or strangers.wanted():
            _note(scope, trace, strangers.told() if spares else 0)


def wanted(path: str, trace: Trace) -> bool:
    """Whether a request is to have a line; of strangers' refusals `over` leaves out some more."""
    if (lines := settings.ACCESS_LOG) != "some":
        return bool(lines == "all")
    if trace.status >= 400 or not trace.status:
        return True
    return not trace.job and not path.startswith(_KNOWN_OTHERWISE)


def _note(scope: Mapping[str, Any], trace: Trace, unlogged: int = 0, *, closed: int = 0) -> None:
    path = scope.get("raw_path") or scope["path"].encode()
    fields = {
        "method": scope["method"],
        "path": path[:200].decode("latin-1"),
        "status": trace.status or _LEFT,
        "ms": round((time.perf_counter() - trace.begun) * 1000, 1),
        "request": trace.id,
    }
    if closed:
        fields["closed"] = closed
    if trace.job:
        fields["job"] = trace.job
    if trace.key:
        fields["key"] = trace.key
    if unlogged:
        fields["unlogged"] = unlogged
    log.log(logging.WARNING if trace.status >= 500 else logging.INFO, "request", extra={"fields": fields})
