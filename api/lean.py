"""The lean door: completions straight from ASGI to the verb, past Django's request handling (which alone
costs about 0.7 ms a request). The same verb stands behind the DRF views, and the same tests run on both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from django.conf import settings

from api import errors, gateway
from api.authentication import Caller
from api.completion import Answer, complete, identify, refuse
from api.errors import ApiError
from api.schemas import SCHEMAS
from gputorrent import background

log = logging.getLogger(__name__)

FILES: Final = "/v1/files"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


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
        return identify(gateway.of(scope), scope["path"], headers)
    except Exception as e:  # noqa: BLE001 - the caller gets our shape, the log the traceback
        return _failure(scope, e)


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
        await _answer(scope, caller, headers, body, send)
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


async def _answer(scope: Scope, caller: Caller, headers: dict[bytes, bytes], body: bytes, send: Send) -> None:
    try:
        answer = await complete(gateway.of(scope), scope["path"], caller, headers, body)
    except Exception as e:  # noqa: BLE001 - the caller gets our shape, the log the traceback
        answer = _failure(scope, e)
    if answer.parts is None:
        await _send_whole(send, answer)
        return
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        async for part in answer.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    finally:
        await answer.close()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def too_large(send: Send, limit: int) -> None:
    """Answer that a body is larger than `limit` bytes."""
    await _send_whole(send, refuse(errors.too_large(limit)))


def _failure(scope: Scope, error: Exception) -> Answer:
    if isinstance(error, ApiError):
        return refuse(error)
    log.error("request failed path=%s", scope["path"], exc_info=error)
    return refuse(errors.unexpected())


async def _send_whole(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _read(scope: Scope, receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
