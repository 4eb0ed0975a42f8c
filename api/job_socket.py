"""The WebSocket ``/ws/jobs/{id}?after=N``: a job's tokens and states to its owner, while it runs and from any
chunk on (see docs/websocket.md). Straight on ASGI: no thread, no query for what this process answers itself.

Whoever is refused is told by a close code, which browsers show only of connections that were accepted first.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qsl

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from api import gateway, socket_callers, sockets, staff
from api.errors import ApiError
from api.gateway import Gateway
from api.job_events import JobEvents
from api.socket_callers import SocketCaller
from api.sockets import Close, Closed, Socket
from gputorrent import background, ledger, tracing
from jobs import counting

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PATH: Final = "/ws/jobs/"
_SESSION_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 1.0
_NUMBER: Final = re.compile(r"[0-9]{1,15}")


def takes(scope: Scope) -> bool:
    """Whether a WebSocket is one of these."""
    return bool(scope["path"].startswith(PATH))


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """One connection, to its end."""
    await receive()  # the wish to connect
    try:
        await send(
            {"type": "websocket.accept", "subprotocol": socket_callers.subprotocol(scope["subprotocols"])}
        )
        close = await _served(scope, receive, send)
        if close is not None:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await send({"type": "websocket.close", "code": close.code, "reason": close.reason})
    except (OSError, TimeoutError):
        pass  # it has left, or does not even take the end


async def _served(scope: Scope, receive: Receive, send: Send) -> Close | None:
    """Returns how to close; None if the client has left."""
    try:
        here = gateway.of(scope)
        caller = await _caller(here, scope)
        tracing.current().key = caller.name
        job, after = _wanted(scope)
        events = JobEvents(here, caller.reader, after).of(job)
        with here.sockets.opened(caller) as socket:
            return await _until_the_end(socket, events, receive, send)
    except Closed as e:
        return e.close
    except ApiError as e:
        return sockets.NO_SUCH_JOB if e.status == 404 else sockets.MISTAKE
    except (DatabaseError, InterfaceError):
        return sockets.AWAY
    except OSError:
        return None
    except Exception:  # the caller gets a code, the log the traceback
        log.exception("socket failed")
        return sockets.MISTAKE


async def _caller(here: Gateway, scope: Scope) -> SocketCaller:
    try:
        return await socket_callers.identify(here.keys, scope)
    except ApiError as e:
        counting.refused(here.dispatcher.metrics, PATH.rstrip("/"), e.code)
        raise Closed(sockets.NO_KEY) from None


def _wanted(scope: Scope) -> tuple[str, int]:
    """The job, and the number of the chunk after which to begin. Raises `Closed`."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    given = dict(query)
    after = given.get("after", "0")
    if len(given) != len(query) or given.keys() - {"after"} or not _NUMBER.fullmatch(after):
        raise Closed(sockets.BAD_REQUEST)
    return scope["path"].removeprefix(PATH), int(after)


async def _until_the_end(
    socket: Socket, events: AsyncGenerator[bytes, None], receive: Receive, send: Send
) -> Close | None:
    sending = asyncio.create_task(_send_all(events, send))
    leaving = asyncio.create_task(_until_left(receive))
    tasks: list[asyncio.Task[Any]] = [sending, leaving]
    if socket.caller.session:
        tasks.append(asyncio.create_task(_watch_session(socket)))
    try:
        await asyncio.wait({*tasks[:2], socket.cut}, return_when=asyncio.FIRST_COMPLETED)
        if socket.cut.done():
            return socket.cut.result()
        return sending.result() if sending.done() else None
    finally:
        await background.end(tasks)


async def _send_all(events: AsyncGenerator[bytes, None], send: Send) -> Close:
    async with aclosing(events):
        async for event in events:
            try:
                # A client that reads slowly holds nothing up but itself: what it has not taken waits in the
                # job's tail, and nowhere else.
                async with asyncio.timeout(settings.SOCKET_STALL_SECONDS):
                    await send({"type": "websocket.send", "text": event.decode("utf-8", "replace")})
            except TimeoutError:
                return sockets.TOO_SLOW
    return sockets.ENDED


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass  # whoever watches has nothing to say


async def _watch_session(socket: Socket) -> None:
    """Whoever logs out, or is no staff any more, watches no longer."""
    while True:
        await asyncio.sleep(_SESSION_SECONDS)
        try:
            if await ledger.ask(staff.of_session, socket.caller.session) is None:
                socket.end(sockets.NO_KEY)
        except (DatabaseError, InterfaceError) as e:
            log.warning("ledger unavailable error=%s", type(e).__name__)
