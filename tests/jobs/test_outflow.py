"""Chunks that go straight to a sink, and those that gather because it takes none: each once, and in order."""

from __future__ import annotations

import asyncio
import random

import pytest

from jobs import errors
from jobs.interactive import InteractiveJob
from jobs.tail import Tails
from tests.jobs.scripted import ScriptedNode, done, until, work
from tests.jobs.test_interactive import chunk, job
from worker_agent.contract import Cancel, Chunk, Done, Outcome


class Client:
    """Reads what a stream's job sends, as a door does: by the sink while it has room, else by `next`."""

    def __init__(self, of: InteractiveJob) -> None:
        self.job = of
        self.got = b""
        self.direct = 0
        self.room = asyncio.Event()
        self.room.set()
        of.sink = self.takes
        self.task = asyncio.create_task(self.follow())

    def takes(self, data: bytes) -> bool:
        if not self.room.is_set():
            return False
        self.got += data
        self.direct += 1
        return True

    async def follow(self) -> object:
        while isinstance(event := await self.job.next(flowing=True), Chunk):
            await self.room.wait()
            self.got += event.data
        return event


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_keeps_up_has_each_chunk_at_once_and_no_task_is_woken():
    this = job()
    client = Client(this)
    await turns()
    for n in range(5):
        this.on_reply(chunk(this, b"%d\n\n" % n, n))
        assert client.got.endswith(b"%d\n\n" % n)
    assert (client.direct, this.passed, this.current.streamed) == (5, 5, 5)
    this.on_reply(end := done(work(this.id)))
    assert await client.task == end


async def test_before_anybody_waits_for_it_to_flow_a_chunk_is_an_event():
    this = job()
    taken: list[bytes] = []

    def takes(data: bytes) -> bool:
        taken.append(data)
        return True

    this.sink = takes
    this.on_reply(chunk(this, b"0"))
    first = asyncio.create_task(this.next())
    await turns()
    this.on_reply(chunk(this, b"1", 1))
    assert await first == chunk(this, b"0")
    waits = asyncio.create_task(this.next())
    assert await waits == chunk(this, b"1", 1)
    asking = asyncio.create_task(this.next())  # for the first of an answer, which another node may give
    await turns()
    this.on_reply(chunk(this, b"2", 2))
    assert await asking == chunk(this, b"2", 2)
    assert taken == []


async def test_a_reader_who_is_slow_and_then_fast_gets_every_byte_once_and_in_order():
    this = job(buffer_bytes=10_000)
    client, chance, sent, n = Client(this), random.Random(7), b"", 0
    while n < 2000:
        match chance.randrange(5):
            case 0:
                client.room.set()
            case 1:
                client.room.clear()
            case 2:
                await turns(chance.randrange(4))
            case _:
                this.on_reply(chunk(this, data := b"%d;" % n, n))
                sent, n = sent + data, n + 1
        assert client.got == sent[: len(client.got)]
    client.room.set()
    this.on_reply(done(work(this.id)))
    assert isinstance(await client.task, Done)
    assert client.got == sent
    assert 0 < client.direct < 2000


async def test_what_gathers_behind_a_reader_who_has_stopped_is_bounded_as_ever():
    this = job(buffer_bytes=10)
    client = Client(this)
    await turns()
    this.on_reply(chunk(this, b"x" * 1000, 0))  # it goes at once: nothing gathers
    client.room.clear()
    for n in range(1, 5):
        this.on_reply(chunk(this, b"1234", n))
    assert this.current.outcome == "slow_client"
    client.room.set()
    await client.task
    assert client.got == b"x" * 1000 + b"12341234"


async def test_those_who_watch_have_what_the_sink_took():
    this = job()
    tails = Tails()
    this.tail = tails.begin(this, 1)
    client = Client(this)
    await turns()
    this.on_reply(chunk(this, b"data: 1\n\n", 0))
    client.room.clear()
    this.on_reply(chunk(this, b"data: 2\n\n", 1))
    assert [this.tail.part(n) for n in range(this.tail.end)] == [b"data: 1\n\n", b"data: 2\n\n"]
    assert this.first_byte_at
    client.room.set()
    this.on_reply(done(work(this.id)))
    await client.task


async def test_of_a_job_whose_caller_was_given_up_nothing_goes_out_any_more():
    this = job()
    client = Client(this)
    await turns()
    this.left_at = 1.0
    this.on_reply(chunk(this, b"1", 0))
    await turns()
    assert (client.got, this.current.streamed, len(this._events)) == (b"", 0, 0)
    this.on_reply(chunk(this, b"data: 2\n\n", 1))
    assert this.current.streamed == 1  # it is paid for
    client.task.cancel()


async def test_a_sink_that_breaks_loses_nothing():
    this = job()
    client = Client(this)

    def breaks(data: bytes) -> bool:
        raise RuntimeError

    this.sink = breaks
    await turns()
    this.on_reply(chunk(this, b"1", 0))
    this.on_reply(done(work(this.id)))
    await client.task
    assert client.got == b"1"


# -- the stream as a whole ---------------------------------------------------------------------------------


@pytest.fixture
async def node(desk, wire) -> ScriptedNode:
    node = ScriptedNode(wire)
    await desk.refresh()
    return node


class Followed:
    """A stream that is followed with a sink; `told` notes what its error event would say."""

    def __init__(self, desk, job: InteractiveJob, first: bytes) -> None:
        self.got: list[bytes] = []
        self.told: list[tuple[str, int]] = []
        self.room = True
        job.sink = self.takes
        self.task = asyncio.create_task(self.follow(desk.dispatcher, job, first))

    def takes(self, data: bytes) -> bool:
        if self.room:
            self.got.append(data)
        return self.room

    async def follow(self, dispatcher, job, first) -> None:
        def told(error: errors.JobError, seen: int) -> bytes:
            self.told.append((error.code, seen))
            return b"error"

        async for data in dispatcher.follow(job, first, told):
            self.got.append(data)


async def begun(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 0\n\n")
    first = await asking.first()
    followed = Followed(desk, asking.job, first.data)
    await turns()
    node.chunk(work, 1, b"data: 1\n\ndata: 2\n\n")
    await until(lambda: len(followed.got) == 2)
    return asking.job, work, followed


async def test_an_error_after_some_chunks_is_one_event_that_knows_how_many_went_before(desk, node):
    _, work, followed = await begun(desk, node)
    node.fail(work, Outcome.ENGINE_DIED, 2)
    await followed.task
    assert followed.got == [b"data: 0\n\n", b"data: 1\n\ndata: 2\n\n", b"error"]
    assert followed.told == [("upstream_failed", 3)]
    assert await desk.held() == 0


async def test_the_end_comes_behind_what_the_sink_took(desk, node):
    _, work, followed = await begun(desk, node)
    node.done(work, 2, b"data: [DONE]\n\n")
    await followed.task
    assert followed.got[-1] == b"data: [DONE]\n\n"
    assert followed.told == []


async def test_who_is_sent_away_while_he_reads_slowly_is_told_once(desk, node):
    job, work, followed = await begun(desk, node)
    followed.room = False
    assert desk.dispatcher.cancel(job.id, errors.Cancelled())
    node.chunk(work, 2, b"data: 3\n\n")
    await followed.task
    assert followed.got[2:] == [b"error"]
    assert followed.told == [("cancelled", 3)]
    await desk.settled()
    assert node.controls() == [Cancel(work.job, 1)]


async def test_a_chunk_that_is_missing_ends_the_stream_where_it_is(desk, node):
    _, work, followed = await begun(desk, node)
    node.chunk(work, 3, b"data: 4\n\n")
    await followed.task
    assert followed.got[2:] == [b"error"]
    assert followed.told == [("upstream_failed", 3)]


async def test_who_leaves_in_the_middle_stops_the_work(desk, node):
    _, work, followed = await begun(desk, node)
    followed.task.cancel()
    await asyncio.gather(followed.task, return_exceptions=True)
    node.chunk(work, 2, b"data: 3\n\n")
    await desk.heard()
    await desk.settled()
    assert node.controls() == [Cancel(work.job, 1)]
    assert len(followed.got) == 2
