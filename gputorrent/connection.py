"""HTTP/1.1 as uvicorn speaks it (``--http gputorrent.connection:Connection``), with a short way past ASGI.

A request whose URL the door takes, and which has nothing unusual about it, is gathered here and answered by
one task: no messages, no layers, no second task that watches for its caller to leave. Everything else goes
uvicorn's own way, and so does whatever arrives while another request of its connection is being answered.
What the layers do (`gputorrent.access`) is done here too: ids, the access log.

The door lies in the state that the application leaves with the server at its start. Without one, as under any
other server, all requests take the long way, which ends at the same verb.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gputorrent import access, tracing
from gputorrent.gathered import Gathered
from gputorrent.head import Headers, Heads

log = logging.getLogger(__name__)

DOOR: Final = "gputorrent.door"
"""Where the door lies in the state of the server."""
_heads = Heads()
_PIECES = 16
"""Of a body that are kept as they came."""
_GATHERED = "gputorrent.gathered"
_WITH_ITS_HEAD = 64 * 1024
"""Bytes of a body that is copied behind its head, to leave in one write. A longer one is not copied."""


class Door(Protocol):
    """Who answers what goes the short way. All calls come from the event loop."""

    def takes(self, url: bytes) -> bool:
        """Whether a POST there may go the short way; the URL is as it came."""

    def admit(self, asked: Exchange) -> Any:
        """Who asks, before the body is read: anything that `answer` wants. None: it has been refused."""

    def answer(self, asked: Exchange, caller: Any, body: bytes) -> Awaitable[None]:
        """Answer it whole or in parts. Cancelled when the caller leaves."""


class Connection(HttpToolsProtocol):
    """One connection. What it knows of uvicorn's insides is held by `tests/connections`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Access lines of uvicorn's, a bound on connections, a path in front: whoever wants these has its way.
        lines = config.access_log and self.access_log
        own_way = lines or self.limit_concurrency is not None or self.root_path
        self._door: Door | None = None if own_way else app_state.get(DOOR)
        if _GATHERED not in app_state:
            app_state[_GATHERED] = Gathered(self.loop)
        self.gathered: Gathered = app_state[_GATHERED]
        self.running: Exchange | None = None
        self._idle_since = 0.0  # by the loop's clock; 0: not idle

    # -- a request comes -----------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self.url, self.headers, self.expect_100_continue = b"", [], False  # a scope for those who need one

    def on_headers_complete(self) -> None:
        if self._door is None or not self._goes_the_short_way(self._door):
            self._go_the_long_way()
            return
        asked = Exchange(self, self.url, self.headers)
        if asked.length < 0:
            self._go_the_long_way()
            return
        self.cycle = asked  # type: ignore[assignment]
        self.running = asked
        asked.admit(self._door)

    def _goes_the_short_way(self, door: Door) -> bool:
        parser, before = self.parser, self.cycle
        return (
            door.takes(self.url)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and not parser.should_upgrade()
            and (before is None or before.response_complete)
        )

    def _go_the_long_way(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # which is the scope's list
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        asked: Any = self.cycle
        if asked.__class__ is not Exchange:
            super().on_body(body)
        elif not asked.response_complete:
            asked.gather(body)

    def on_message_complete(self) -> None:
        asked: Any = self.cycle
        if asked.__class__ is not Exchange:
            super().on_message_complete()
        elif not asked.response_complete:
            asked.start()

    # -- it ends -------------------------------------------------------------------------------------
    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_at(self._idle_since + self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self.running is not None:
            self.running.leave()
        if self.cycle.__class__ is Exchange:
            self.cycle = None  # nothing there for uvicorn to tell
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.running is not None:
            self.running.leave()  # its answer may not follow that
        super().send_400_response(msg)

    # -- idle: one timer for a connection, which is set again only when it has run out --------------------
    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = 0.0

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if not self._idle_since or self.transport.is_closing():
            return
        until = self._idle_since + self.timeout_keep_alive
        if self.loop.time() < until:
            self._look_again_at(until)
        else:
            self.transport.close()

    def _look_again_at(self, when: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(when, self.timeout_keep_alive_handler)


class Exchange:
    """One request that goes the short way, and its answer. uvicorn takes it for a cycle of its own: it reads
    `response_complete`, and takes `keep_alive` away when the server shuts down."""

    __slots__ = (
        "_begun",
        "_body",
        "_caller",
        "_connection",
        "_door",
        "_flow",
        "_gathered",
        "_opens",
        "_runs",
        "_task",
        "_trace",
        "headers",
        "keep_alive",
        "left",
        "length",
        "path",
        "response_complete",
        "transport",
    )

    def __init__(self, connection: Connection, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._connection = connection
        self.transport, self._flow = connection.transport, connection.flow
        self._gathered = connection.gathered
        self._trace = tracing.of(headers)
        self.path = url.decode("ascii")
        self.headers: Mapping[bytes, bytes] = dict(headers)
        self.length = self._declared()
        """Bytes of the body; -1: they are not counted in front. The parser holds the client to it."""
        self.keep_alive: bool = connection.parser.should_keep_alive()
        self.response_complete = False
        self.left = False
        """The caller closed the connection before the end of the answer."""
        self._begun = False
        self._opens = False
        self._body: list[bytes] | bytearray = []
        self._door: Door
        self._caller: Any = None
        self._task: asyncio.Task[None] | None = None
        self._runs = False

    def _declared(self) -> int:
        declared = self.headers.get(b"content-length", b"")
        return int(declared) if declared.isdigit() and b"transfer-encoding" not in self.headers else -1

    # -- the request: called by the connection -----------------------------------------------------------
    def admit(self, door: Door) -> None:
        """Ask the door who this is, or have it refuse."""
        self._door = door
        self._caller = tracing.within(self._trace, door.admit, self)

    def gather(self, body: bytes) -> None:
        """The next piece of the body."""
        gathered = self._body
        if not gathered:
            self._body = [body]
        elif isinstance(gathered, list):
            gathered.append(body)
            if len(gathered) > _PIECES:  # in one piece of memory: many small ones would take far more
                self._body = bytearray(b"".join(gathered))
        else:
            gathered += body

    def start(self) -> None:
        """The body is complete."""
        self._task = self._connection.loop.create_task(self._run())
        self._connection.tasks.add(self._task)  # the server waits for these when it shuts down

    def leave(self) -> None:
        """The connection is gone: nobody waits for the rest."""
        self.left = True
        if self._task is None:
            self._over()
        elif self._runs:  # else it sees to that itself: cancelled before its first step it would do nothing
            self._task.cancel()

    async def _run(self) -> None:
        self._runs = True
        tracing.enter(self._trace)
        gathered, self._body = self._body, []
        body = b"".join(gathered) if isinstance(gathered, list) else bytes(gathered)
        try:
            if self.left:
                return
            await self._door.answer(self, self._caller, body)
            if not self.response_complete and not self.left:
                log.error("request not answered to its end path=%s", self.path)
        except asyncio.CancelledError:
            if not self.left:
                raise
        except Exception as e:
            log.error("request failed path=%s", self.path, exc_info=e)
            if not self._begun:
                self.refuse(500, [(b"content-type", b"text/plain")], b"Internal Server Error")
        finally:
            if not self.response_complete:
                self._write(b"")
                self.transport.close()
            self._over()

    def _over(self) -> None:
        if self._task is not None:
            self._connection.tasks.discard(self._task)
            self._task = None
        if self._connection.running is self:
            self._connection.running = None
        if access.wanted(self.path, self._trace):
            access.over({"method": "POST", "path": self.path}, self._trace)

    # -- the answer: called by the door ------------------------------------------------------------------
    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once, as is possible before there was any other answer."""
        self._whole(status, headers, body)
        if self._task is None:
            self._over()

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer."""
        await self._room()
        self._whole(status, headers, body)

    async def begin(self, status: int, headers: Headers) -> None:
        """An answer that comes in parts."""
        await self._room()
        self._gathered.add(self, self._head(status, headers, (b"transfer-encoding", b"chunked")))
        self._opens = True

    async def part(self, data: bytes) -> None:
        """The next of it, once there is room for it."""
        await self._room()
        if data:  # a chunk without any would be the last
            self._gathered.add(self, b"%x\r\n%b\r\n" % (len(data), data))
            if self._opens:  # the first token: it goes before anything else that this turn has to do
                self._opens = False
                self._write(b"")

    def passes(self, data: bytes) -> bool:
        """The next of it, if there is room for it now. Every token of a stream comes here."""
        if self._flow.write_paused:
            return False
        if data:
            self._gathered.add(self, b"%x\r\n%b\r\n" % (len(data), data))
        return True

    async def end(self) -> None:
        """All parts have been given."""
        await self._room()
        self._write(b"0\r\n\r\n")
        self._complete()

    # -- inside --------------------------------------------------------------------------------------
    def _whole(self, status: int, headers: Headers, body: bytes) -> None:
        head = self._head(status, headers, (b"content-length", b"%d" % len(body)))
        if len(body) <= _WITH_ITS_HEAD:
            self._write(head + body)
        else:
            self._write(head)
            self._write(body)
        self._complete()

    def _head(self, status: int, headers: Headers, framing: tuple[bytes, bytes]) -> bytes:
        added = self._connection.server_state.default_headers
        headers = [*headers, *self._trace.began(status), framing]
        head, self.keep_alive = _heads.make(status, added, headers, stays=self.keep_alive)
        self._begun = True
        return head

    async def _room(self) -> None:
        if self._flow.write_paused:
            await self._flow.drain()

    def _write(self, data: bytes) -> None:
        """Now, behind what has gathered. Each write is a call of the kernel, and wakes the client: so a head
        has its first part behind it, and a last part the end."""
        data = self._gathered.take(self) + data
        if data and not self.left:
            self.transport.write(data)

    def _complete(self) -> None:
        if self.left:
            return
        connection = self._connection
        self.response_complete = True
        connection.running = None
        if not self.keep_alive:
            self.transport.close()
        connection.on_response_complete()
