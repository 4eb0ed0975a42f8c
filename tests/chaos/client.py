"""A client that sees everything: one request on a connection of its own, read as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools


class Broken(Exception):
    """There was no connection, or it ended before the answer did. `sent`: the request may have arrived."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Answer:
    """Status and headers are there; the body comes by `parts`, or by `json` as a whole."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._head = self._whole = False
        self.headers: dict[str, str] = {}

    # -- called by the parser ----------------------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._head = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._whole = True

    # -- called by us ------------------------------------------------------------------------------------
    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    async def head(self) -> None:
        while not self._head:
            await self._more()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `Broken` when the connection ends before the body does."""
        while True:
            parts, self._parts = self._parts, []
            if parts:
                yield b"".join(parts)
            if self._whole:
                return
            await self._more()

    async def json(self) -> Any:
        """The whole body; None for one that is not JSON."""
        body = b"".join([part async for part in self.parts()])
        try:
            return json.loads(body)
        except ValueError:
            return None

    async def events(self) -> AsyncIterator[Any]:
        """The data of server-sent events, parsed; ``[DONE]`` stays a string, comments are skipped."""
        rest = b""
        async for part in self.parts():
            *whole, rest = (rest + part).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: "):
                    data = event[6:]
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        if rest:
            raise Broken("the stream ends in the middle of an event", sent=True)

    async def _more(self) -> None:
        try:
            data = await self._reader.read(65536)
        except OSError as e:
            raise Broken(type(e).__name__, sent=True) from None
        if not data:
            raise Broken("closed before the end", sent=True)
        self._parser.feed_data(data)


@asynccontextmanager
async def ask(port: int, method: str, path: str, key: str, body: Any = None) -> AsyncIterator[Answer]:
    """Send a request and wait for the head of its answer. Leaving the block closes the connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as e:
        raise Broken(type(e).__name__, sent=False) from None
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        answer = Answer(reader)
        await answer.head()
        yield answer
    finally:
        writer.transport.abort()
