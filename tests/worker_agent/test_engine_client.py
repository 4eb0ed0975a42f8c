"""The connections to an engine: which are kept for the next request, and which are not."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from worker_agent.engine_client import EngineClient, EngineDied

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"6\r\nlast\n\n\r\n"
END = b"0\r\n\r\n"


class Engine:
    """Answers each request with what `script` gives, pausing a moment between its parts."""

    def __init__(self, *script: bytes) -> None:
        self.script, self.connections, self.cut = script, 0, 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for part in self.script:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.05)
        self.cut += 1
        writer.close()


@contextlib.asynccontextmanager
async def engine(*script):
    found = Engine(*script)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    client = EngineClient(found.port)
    try:
        yield found, client
    finally:
        client.close()
        server.close()
        while found.cut < found.connections:  # noqa: ASYNC110 - it hears of the closing by its socket
            await asyncio.sleep(0.01)
        await server.wait_closed()


async def last_of(client):
    """Follow a stream to its last event and leave."""
    async with client.exchange("GET", "/") as answer:
        return await answer.follow(lambda data: data if data.endswith(b"last\n\n") else None)


async def test_a_stream_that_ends_as_http_a_moment_after_its_last_event_leaves_its_connection_for_the_next():
    async with engine(HEAD, LAST, END) as (found, client):
        for _ in range(3):
            assert await last_of(client) == b"last\n\n"
            await asyncio.sleep(0.2)
        assert (found.connections, found.cut) == (1, 0)


async def test_a_stream_that_never_ends_as_http_is_cut_and_its_connection_not_used_again():
    async with engine(HEAD, LAST) as (found, client):
        await last_of(client)
        async with asyncio.timeout(10):
            while not found.cut:  # noqa: ASYNC110 - it hears of the closing by its socket
                await asyncio.sleep(0.05)
        await last_of(client)
        assert found.connections == 2


async def test_leaving_in_the_middle_cuts_at_once():
    async with engine(HEAD, LAST, END) as (found, client):
        async with client.exchange("GET", "/"):
            pass
        async with asyncio.timeout(10):
            while not found.cut:  # noqa: ASYNC110 - it hears of the closing by its socket
                await asyncio.sleep(0.01)


async def test_what_whoever_follows_raises_reaches_him():
    def refuse(_):
        raise LookupError("not that")

    async with engine(HEAD, LAST, END) as (_, client):
        with pytest.raises(LookupError, match="not that"):
            async with client.exchange("GET", "/") as answer:
                await answer.follow(refuse)


async def test_a_stream_that_ends_without_what_was_waited_for_has_died():
    async with engine(HEAD, LAST, END) as (_, client):
        with pytest.raises(EngineDied, match="without its last event"):
            async with client.exchange("GET", "/") as answer:
                await answer.follow(lambda data: None)
