"""Refuses bodies that are too large while they arrive; Django would read them whole before any view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gputorrent.chosen import settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[Send, int], Awaitable[None]]

_RESULTS, _FILES = "/nodes/report", "/v1/files"
_FORM_BYTES = 64 * 1024  # what a form has around its file


class BodyLimit:
    """ASGI middleware. An agent's report may carry a result, and a form a file, so they have limits of
    their own.

    `refuse` answers that a body is larger than so many bytes.
    """

    def __init__(self, app: App, refuse: Refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = _limit(scope["path"])
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared) > limit:
            await self._refuse(send, limit)
            return
        if declared.isdigit():  # the server holds the client to what it declared
            await self._app(scope, receive, send)
            return
        seen, started = 0, False

        async def counted() -> dict[str, Any]:
            nonlocal seen
            if seen <= limit:
                message = await receive()
                seen += len(message.get("body", b""))
            # Beyond the limit the caller seems gone: the application tidies up as for anyone who leaves.
            return message if seen <= limit else {"type": "http.disconnect"}

        async def watched(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._app(scope, counted, watched)
        if seen > limit and not started:
            await self._refuse(send, limit)


def _limit(path: str) -> int:
    if path == _RESULTS:
        return int(settings.MAX_RESULT_BYTES)
    if path == _FILES:
        return max(int(settings.FILE_BYTES), int(settings.MAX_BODY_BYTES)) + _FORM_BYTES
    return int(settings.MAX_BODY_BYTES)
