"""HTTP/1.1 to one engine on loopback: small, since every token passes here.

A connection serves one exchange at a time and is kept for the next. Closing one in the middle is how a
request is aborted. Bodies are handed over as they arrive: whatever gathered since the last read in one piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import httptools

_T = TypeVar("_T")

_IDLE_SECONDS = 2.0
"""An idle connection older than this is not used again: the engine closes them after about five."""

_ENDING_SECONDS = 1.0
"""How long a stream whose last event has come may take to end as HTTP, for its connection to be kept."""

MAX_UNREAD_BYTES = 64 << 20
"""An answer that piles up beyond this without being read is cut."""


class EngineError(Exception):
    """The engine did not answer properly; the message holds nothing of the request."""


class EngineUnreachable(EngineError):
    """Nothing accepted the connection."""


class EngineDied(EngineError):
    """The connection broke before the answer was complete."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = self._keep_alive = self.ending = False
        self.broken = ""
        self._parts: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self.listener: Callable[[], None] | None = None
        self._parted: tuple[asyncio.TimerHandle, Callable[[], None]] | None = None
        self._parser = httptools.HttpResponseParser(self)

    # -- asyncio's side --------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.broken = "the engine's answer was not HTTP"
            self.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self.status and not framed and not self.broken:
            self.complete = True  # the end of the connection is the end of the body
        self._wake()
        self._part()

    # -- the parser's side -----------------------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._unread += len(body)
        if self._unread > MAX_UNREAD_BYTES:
            self.broken = "the engine's answer was too large"
            self.close()

    def on_message_complete(self) -> None:
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()  # only tells within this call
        self._part()

    # -- ours ------------------------------------------------------------------------------------------
    @property
    def reusable(self) -> bool:
        return self.complete and not self.lost and self._keep_alive

    def send(self, data: bytes) -> None:
        if self.complete:
            self._begin()
        assert self.transport is not None
        self.transport.write(data)

    def when_ended(self, then: Callable[[], None]) -> None:
        """Call `then` once the answer has come to its end by itself, or has been cut for not doing so."""
        self._parted = (asyncio.get_running_loop().call_later(_ENDING_SECONDS, self.close), then)

    def _part(self) -> None:
        if self._parted is not None:
            (timer, then), self._parted = self._parted, None
            timer.cancel()
            then()

    def _wake(self) -> None:
        if self.listener is not None:
            self.listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> None:
        """Wait until something has changed since the last look."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def take(self) -> bytes:
        parts, self._parts, self._unread = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Answer:
    """An answer under way: status and headers are there, the body is read in pieces."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.content_type = connection.headers.get(b"content-type", b"").decode("latin-1")
        self.retry_after = connection.headers.get(b"retry-after", b"").decode("latin-1")

    async def read(self) -> bytes:
        """All bytes that came since the last read, waiting for at least one; ``b""`` at the end.

        Raises `EngineDied` if the connection broke first.
        """
        connection = self._connection
        while True:
            if data := connection.take():
                return data
            if connection.complete:
                return b""
            if connection.lost or connection.broken:
                raise EngineDied(connection.broken or "the engine closed the connection")
            await connection.news()

    async def follow(self, take: Callable[[bytes], _T | None]) -> _T:
        """Hand everything to `take` in the moment it arrives, until that returns something, which is
        returned, or raises. No task is woken for a piece: that was about a tenth of a token.

        Raises `EngineDied` if the body ends, or the connection breaks, before that.
        """
        connection = self._connection
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def heard() -> None:
            if done.done():
                return
            try:
                data = connection.take()
                found = take(data) if data else None
                if found is not None:
                    done.set_result(found)
                elif connection.complete:
                    raise EngineDied("the engine ended a stream without its last event")
                elif connection.lost or connection.broken:
                    raise EngineDied(connection.broken or "the engine closed the connection")
            except Exception as error:  # noqa: BLE001 - it is for whoever follows, not for the event loop
                done.set_exception(error)
                done.exception()  # one who is cancelled in this moment must not raise "never retrieved"

        connection.listener = heard
        try:
            heard()  # what came with the head
            found = await done
            connection.ending = True  # what is still to come is of HTTP alone
            return found
        finally:
            connection.listener = None

    async def read_all(self) -> bytes:
        """The whole body. Raises `EngineDied`."""
        if self._connection.complete:  # it came with its head
            return self._connection.take()
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)


class EngineClient:
    """One engine's HTTP server."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, prefix: str = "", tls: bool = False) -> None:
        self.host, self.port, self._prefix = host, port, prefix
        self._tls = ssl.create_default_context() if tls else None
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = {}
    ) -> Exchange:
        """``async with`` gives the `Answer`; leaving before its end closes the connection: an abort."""
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"host: {self.host}:{self.port}"]
        if body or method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return Exchange(self, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, bytes]:
        """Status and body. Raises `EngineError`, also when it takes longer than `timeout` seconds."""
        return await self._whole("GET", path, b"", timeout)

    async def post(self, path: str, body: bytes, *, timeout: float = 30.0) -> tuple[int, bytes]:
        """Status and body. Raises `EngineError`, also when it takes longer than `timeout` seconds."""
        return await self._whole("POST", path, body, timeout)

    async def _whole(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(timeout), self.exchange(method, path, body) as answer:
                return answer.status, await answer.read_all()
        except TimeoutError:
            raise EngineDied(f"no answer on {path} within {timeout:g} s") from None

    def close(self) -> None:
        """Cut every connection, those with work in them too."""
        for connection in [*self._open]:
            connection.close()
        self._idle.clear()

    # -- connections -----------------------------------------------------------------------------------
    async def take(self) -> tuple[_Connection, bool]:
        """A connection, and whether it has been used before."""
        loop = asyncio.get_running_loop()
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and loop.time() - connection.idle_since < _IDLE_SECONDS:
                return connection, True
            connection.close()
            self._open.discard(connection)
        try:
            _, connection = await loop.create_connection(_Connection, self.host, self.port, ssl=self._tls)
        except OSError as error:
            raise EngineUnreachable(f"the engine does not accept connections ({error.strerror})") from error
        self._open.add(connection)
        return connection, False

    def give_back(self, connection: _Connection) -> None:
        """Keep it if its exchange ended cleanly, else close it."""
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        elif connection.ending and not connection.complete and not connection.lost:
            connection.ending = False
            connection.when_ended(lambda: self.give_back(connection))
        else:
            connection.close()
            self._open.discard(connection)


class Exchange(contextlib.AbstractAsyncContextManager[Answer]):
    """One request and its answer; see `EngineClient.exchange`."""

    def __init__(self, client: EngineClient, request: bytes) -> None:
        self._client, self._request = client, request
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Answer:
        lost = False
        while True:
            try:
                self._connection, used = await self._client.take()
            except EngineUnreachable as error:
                if lost:  # it ended with our request on a kept connection, and nothing listens there any more
                    raise EngineDied("the engine died without an answer") from error
                raise
            try:
                self._connection.send(self._request)
                while not self._connection.status:
                    if self._connection.lost or self._connection.broken:
                        break
                    await self._connection.news()
                if self._connection.status:
                    return Answer(self._connection)
            except BaseException:
                self._leave()
                raise
            broken = self._connection.broken
            self._leave()
            # A kept connection may have been closed by the engine just as we wrote: not an answer. Again.
            lost = True
            if not used:
                raise EngineDied(broken or "the engine closed the connection without an answer")

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.give_back(connection)
