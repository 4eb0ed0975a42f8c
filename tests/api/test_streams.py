"""Streams of the whole application on a real socket: readers who are slow, who leave, who are sent away."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress

import pytest

from gputorrent.asgi import application
from jobs.models import Job, JobState
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode, until
from tests.listening import listening
from worker_agent.contract import Cancel, Outcome

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}).encode()
LARGE = b"data: " + b"x" * 60_000 + b"\n\n"


class Reader:
    """A client that reads when it is told to."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = streams

    def ask(self, key: dict[str, str]) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: {key['Authorization']}\r\n"
        self.writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)

    async def head(self) -> str:
        async with asyncio.timeout(10):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def chunk(self) -> bytes:
        """The next part as it was written; empty at the end."""
        async with asyncio.timeout(10):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        found = b""
        while part := await self.chunk():
            found += part
        return found

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def begun(ledger, wire, settings):
    """A stream whose head and first event have come: its reader, its node, its work, the server."""
    settings.SNAPSHOT_SECONDS = settings.RECORD_SECONDS = 0.02
    async with AsyncExitStack() as stack:

        async def begin():
            node, key = ScriptedNode(wire), await caller()
            here = await stack.enter_async_context(listening(application))
            reader = Reader(await asyncio.open_connection("127.0.0.1", here.port, limit=1024))
            stack.push_async_callback(reader.close)
            reader.ask(key)
            work = await node.take()
            node.chunk(work, 0, b"data: 0\n\n")
            assert "text/event-stream" in await reader.head()
            assert await reader.chunk() == b"data: 0\n\n"
            return reader, node, work, here

        yield begin


async def recorded(job: str, state: JobState) -> Job:
    async with asyncio.timeout(10):
        while True:
            row = await Job.objects.filter(pk=job, state=state).afirst()
            if row:
                return row
            await asyncio.sleep(0.02)


def paused(here) -> bool:
    (connection,) = here.connections
    return connection.flow.write_paused


async def test_a_stream_is_whole_and_the_connection_serves_the_next(begun):
    reader, node, work, _ = await begun()
    for n in range(1, 50):
        node.chunk(work, n, b"data: %d\n\n" % n)
    node.done(work, 50, b"data: [DONE]\n\n")
    assert await reader.rest() == b"".join(b"data: %d\n\n" % n for n in range(1, 50)) + b"data: [DONE]\n\n"
    row = await recorded(work.job, JobState.COMPLETED)
    assert row.first_token_at


async def test_a_slow_reader_who_is_fast_again_gets_every_byte_once(begun):
    reader, node, work, here = await begun()
    n = 0
    while not paused(here):
        n += 1
        node.chunk(work, n, b"data: %d " % n + LARGE)
        await asyncio.sleep(0.002)
    for _ in range(5):  # these gather
        n += 1
        node.chunk(work, n, b"data: %d " % n + LARGE)
    node.done(work, n + 1, b"data: [DONE]\n\n")
    rest = await reader.rest()
    assert rest == b"".join(b"data: %d " % m + LARGE for m in range(1, n + 1)) + b"data: [DONE]\n\n"
    await recorded(work.job, JobState.COMPLETED)


async def test_a_reader_who_stays_slow_loses_the_answer_and_is_told_at_its_end(begun, settings):
    settings.STREAM_BUFFER_BYTES = 200_000
    reader, node, work, _ = await begun()
    n = 0
    while not (stopped := node.controls()):
        n += 1
        node.chunk(work, n, LARGE)
        await asyncio.sleep(0.002)
        assert n < 1000
    assert stopped == [Cancel(work.job, 1)]
    rest = await reader.rest()
    last = rest.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    assert "more slowly" in json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert rest.count(LARGE) * len(LARGE) + len(last) + 2 == len(rest)
    await recorded(work.job, JobState.FAILED)


async def test_an_error_after_some_chunks_is_one_event(begun):
    reader, node, work, _ = await begun()
    node.chunk(work, 1, b"data: 1\n\n")
    assert await reader.chunk() == b"data: 1\n\n"
    node.fail(work, Outcome.ENGINE_DIED, 2, "the engine has died")
    rest = await reader.rest()
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"


async def test_who_leaves_a_stream_stops_its_work(begun):
    reader, node, work, _ = await begun()
    await reader.close()
    assert await until(node.controls) == [Cancel(work.job, 1)]
    node.fail(work, Outcome.CANCELLED, 1)
    row = await recorded(work.job, JobState.CANCELLED)
    assert row.error_code == "client_closed"


async def test_a_stream_that_is_open_when_the_server_ends_is_brought_to_its_end(begun):
    reader, node, work, here = await begun()
    here.shut_down()
    await asyncio.sleep(0.2)
    node.chunk(work, 1, b"data: 1\n\n")
    node.done(work, 2, b"data: [DONE]\n\n")
    assert await reader.rest() == b"data: 1\n\ndata: [DONE]\n\n"
    assert await reader.reader.read() == b""
