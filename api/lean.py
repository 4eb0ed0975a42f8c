"""The lean door: completions straight from the server to the verb, past Django's request handling (which
alone costs about 0.7 ms a request). The same verb stands behind the DRF views, and the same tests run on all.

It has two forms: an ASGI application for any server (`takes`, `serve`), and `Door` for the one that hands
over whole requests (`gputorrent.connection`). They differ in how a body comes and where an answer goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

from api import errors, gateway
from api.authentication import Caller
from api.completion import Answer, complete, identify, refuse
from api.errors import ApiError, Headers
from api.gateway import Gateway
from api.schemas import SCHEMAS
from gputorrent import background
from gputorrent.chosen import settings
from jobs.outflow import Sink

log = logging.getLogger(__name__)

FILES: Final = "/v1/files"
_URLS: Final = frozenset(path.encode() for path in SCHEMAS)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Out(Protocol):
    """Where an answer goes: whole, or in parts."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None: ...
    async def begin(self, status: int, headers: Headers) -> None: ...
    def part(self, data: bytes) -> Awaitable[None]: ...
    async def end(self) -> None: ...

    @property
    def passes(self) -> Sink | None:
        """Writes a part without waiting, where there is room."""


class Asked(Out, Protocol):
    """A request that the server gathers itself."""

    path: str
    headers: Mapping[bytes, bytes]
    length: int

    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once; its body need not be read."""


class Door:
    """The door for a server that hands over whole requests."""

    def __init__(self, here: Gateway) -> None:
        self._here = here
        self._urls = _URLS if settings.LEAN_DOOR else frozenset()
        self._most = int(settings.MAX_BODY_BYTES)

    def takes(self, url: bytes) -> bool:
        return url in self._urls

    def admit(self, asked: Asked) -> Caller | None:
        """Who asks, before the body is read. None: it was refused."""
        if asked.length > self._most:
            refusal = refuse(errors.too_large(self._most))
        else:
            caller = _caller(self._here, asked.path, asked.headers)
            if isinstance(caller, Caller):
                return caller
            refusal = caller
        asked.refuse(refusal.status, refusal.headers, refusal.body)
        return None

    def answer(self, asked: Asked, caller: Caller, body: bytes) -> Awaitable[None]:
        return _answer(self._here, asked.path, caller, asked.headers, body, asked)


def takes(scope: Scope) -> bool:
    """Whether a request goes through this door."""
    return bool(settings.LEAN_DOOR) and scope["method"] == "POST" and scope["path"] in SCHEMAS


async def turned_away(scope: Scope, send: Send) -> bool:
    """Answer a stranger who sends a file, before Django reads it onto the disk. False for everyone else."""
    if scope["method"] != "POST" or scope["path"] != FILES:
        return False
    caller = _identify(scope, dict(scope["headers"]))
    if isinstance(caller, Answer):
        await _send_whole(send, caller)
        return True
    return False


def _identify(scope: Scope, headers: dict[bytes, bytes]) -> Caller | Answer:
    try:
        here = gateway.of(scope)
    except ApiError as e:
        return refuse(e)
    return _caller(here, scope["path"], headers)


def _caller(here: Gateway, path: str, headers: Mapping[bytes, bytes]) -> Caller | Answer:
    try:
        return identify(here, path, headers)
    except Exception as e:  # noqa: BLE001 - the caller gets our shape, the log the traceback
        return _failure(path, e)


class _Left(Exception):
    """The caller closed the connection."""


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request. A caller who leaves cancels the work."""
    headers = dict(scope["headers"])
    caller = _identify(scope, headers)
    if isinstance(caller, Answer):
        await _send_whole(send, caller)
        return
    try:
        body = await _read(scope, receive)
    except ApiError as e:
        await _send_whole(send, refuse(e))
        return
    except _Left:
        return
    watch = _Leaving(receive)
    try:
        await _answer(gateway.of(scope), scope["path"], caller, headers, body, _Messages(send))
        watch.over()
    except asyncio.CancelledError:
        if not watch.left:
            raise
        watch.task.uncancel()
    except Exception as e:
        log.error("request failed path=%s", scope["path"], exc_info=e)
    finally:
        await watch.end()


class _Leaving:
    """Cancels the task that made it once the caller has left: a task beside the request's own, not two."""

    def __init__(self, receive: Receive) -> None:
        self.left = self._over = False
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._watching = asyncio.create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._over:  # the server says so at the end of every answer, too
            self.left = True
            self.task.cancel()

    def over(self) -> None:
        """The answer is complete: leaving means nothing any more. The server itself ends the watch."""
        self._over = True

    async def end(self) -> None:
        """The answer is complete, or was cut."""
        if not self._over:
            self._over = True
            await background.end([self._watching])


class _Messages:
    """An answer as the messages of ASGI."""

    passes = None

    def __init__(self, send: Send) -> None:
        self._send = send

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def part(self, data: bytes) -> Awaitable[None]:
        return self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(
    here: Gateway, path: str, caller: Caller, headers: Mapping[bytes, bytes], body: bytes, out: Out
) -> None:
    try:
        answer = await complete(here, path, caller, headers, body)
    except Exception as e:  # noqa: BLE001 - the caller gets our shape, the log the traceback
        answer = _failure(path, e)
    if answer.parts is None:
        await out.whole(answer.status, answer.headers, answer.body)
        return
    try:
        await out.begin(answer.status, answer.headers)
        if answer.job is not None:
            answer.job.sink = out.passes
        async for part in answer.parts:
            await out.part(part)
    finally:
        await answer.close()
    await out.end()


async def too_large(send: Send, limit: int) -> None:
    """Answer that a body is larger than `limit` bytes."""
    await _send_whole(send, refuse(errors.too_large(limit)))


def _failure(path: str, error: Exception) -> Answer:
    if isinstance(error, ApiError):
        return refuse(error)
    log.error("request failed path=%s", path, exc_info=error)
    return refuse(errors.unexpected())


async def _send_whole(send: Send, answer: Answer) -> None:
    await _Messages(send).whole(answer.status, answer.headers, answer.body)


async def _read(scope: Scope, receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
