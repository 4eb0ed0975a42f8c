"""A job that one web process answers, watched at another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobs.dispatch import Dispatcher
from jobs.relaying import Relaying, question, watch_key
from jobs.replicas import Replicas
from jobs.tail import Reader, Tail
from tests.jobs.desk import Asking
from tests.jobs.scripted import until
from worker_agent.contract import reply_key


class Elsewhere:
    """Another web process, as far as it watches."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        d = self.dispatcher
        self.replicas = Replicas(d.pipe, d.mailbox, d.tails)

    @property
    def key(self) -> str:
        return watch_key(self.dispatcher.mailbox.web)


@pytest.fixture
async def elsewhere(desk) -> AsyncIterator[Elsewhere]:
    there = Elsewhere()
    await there.dispatcher.start()
    yield there
    await there.replicas.stop()
    await there.dispatcher.stop()


@pytest.fixture
async def relay(desk) -> AsyncIterator[Relaying]:
    d = desk.dispatcher
    relaying = Relaying(d.pipe, d.mailbox, d.tails)
    yield relaying
    await relaying.stop()


class Stream:
    """A job under way here, and the node that answers it."""

    def __init__(self, desk: Any, node: Any) -> None:
        self.desk, self.node, self.sent = desk, node, 0

    async def begin(self) -> Stream:
        await self.desk.refresh()
        self.asking: Asking = self.desk.ask()
        self.work = await self.node.take()
        self.job = await until(lambda: self.asking.job)
        return self

    def send(self, *numbers: int) -> None:
        data = b"".join(b'data: {"n":%d}\n\n' % n for n in numbers)
        self.node.chunk(self.work, self.sent, data)
        self.sent += 1

    async def finish(self) -> None:
        self.node.done(self.work, self.sent, b"data: [DONE]\n\n")
        await self.asking.first()
        await self.asking.rest()


class Watching:
    """Reads a tail as it grows."""

    def __init__(self, tail: Tail) -> None:
        self.tail, self.reader = tail, Reader(tail)
        self.seen: list[bytes] = []
        self.jumped = 0

    def look(self) -> list[bytes]:
        batch = self.reader.take()
        self.jumped += batch.jumped
        self.seen += batch.chunks
        return self.seen

    async def has(self, *numbers: int) -> None:
        await until(lambda: len(self.look()) >= len(numbers))
        assert self.seen == [b'{"n":%d}' % n for n in numbers]
        assert not self.jumped


async def test_chunks_states_and_the_end_arrive_in_order_once(desk, relay, elsewhere, node, wire):
    stream = await Stream(desk, node).begin()
    stream.send(1, 2)
    await stream.asking.first()
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        watching = Watching(tail)
        await watching.has(1, 2)
        assert (tail.standing.state, tail.standing.node) == ("running", node.id)
        stream.send(3)
        await watching.has(1, 2, 3)
        async with elsewhere.replicas.of(
            stream.job.id, stream.job.web
        ) as same:  # one copy, however many watch
            assert same is tail
            await Watching(same).has(1, 2, 3)
        await stream.finish()
        await until(lambda: tail.standing.ended)
        await watching.has(1, 2, 3)
        assert (tail.standing.prompt_tokens, tail.standing.completion_tokens) == (3, 7)
        assert not tail.lost
    await until(lambda: not relay._mirrors)
    await until(lambda: not wire.xlen(elsewhere.key))
    assert elsewhere.dispatcher.tails.size == 0


async def test_nothing_passes_through_redis_unless_it_is_watched(desk, relay, elsewhere, node, wire):
    stream = await Stream(desk, node).begin()
    stream.send(1)
    await stream.asking.first()
    await stream.finish()
    assert not wire.keys("gt:watch:*")


async def test_a_stream_that_has_just_ended_is_still_there_and_then_gone(desk, relay, elsewhere, node):
    stream = await Stream(desk, node).begin()
    stream.send(1)
    await stream.finish()
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        await until(lambda: tail.standing and tail.standing.ended)
        await Watching(tail).has(1)
    desk.dispatcher.tails.expire(float("inf"))
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        await until(lambda: tail.lost)
        assert tail.standing is None


async def test_who_answered_nobody_asks_long(desk, elsewhere):
    async with elsewhere.replicas.of("f" * 32, "0" * 16) as tail:
        assert tail.lost


async def test_what_the_wire_loses_is_sent_again(desk, relay, elsewhere, node, wire):
    stream = await Stream(desk, node).begin()
    stream.send(1)
    await stream.asking.first()
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        watching = Watching(tail)
        await watching.has(1)
        await until(lambda: not wire.xlen(elsewhere.key))
        wire.delete(elsewhere.key)  # nobody listens, as it seems: the relay stops
        stream.send(2)
        await until(lambda: not relay._mirrors)
        stream.send(3)
        await watching.has(1, 2, 3)
        await stream.finish()
        await until(lambda: tail.standing.ended)


async def test_a_hole_is_noticed_and_filled(desk, relay, elsewhere, node, wire):
    stream = await Stream(desk, node).begin()
    stream.send(1)
    await stream.asking.first()
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        watching = Watching(tail)
        await watching.has(1)
        (mirror,) = relay._mirrors.values()
        mirror.tail.add(b'data: {"n":2}\n\n')
        mirror.reader.take()  # as if it had been sent
        stream.send(3)
        await watching.has(1, 2, 3)


async def test_what_its_process_does_not_keep_any_more_is_a_jump(desk, relay, elsewhere, node, settings):
    desk.dispatcher.tails.each = 300
    stream = await Stream(desk, node).begin()
    for n in range(1, 20):
        stream.send(n)
    await until(lambda: stream.job.tail.end == 19)
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:
        watching = Watching(tail)
        await until(lambda: b'{"n":19}' in watching.look())
        assert watching.jumped == 1
        assert watching.seen == [b'{"n":%d}' % n for n in range(20 - len(watching.seen), 20)]


async def test_a_relay_ends_when_nobody_asks_for_it(desk, relay, elsewhere, node):
    relay.lapse_seconds = 0.05
    stream = await Stream(desk, node).begin()
    await elsewhere.replicas._open()
    relay.asked(question(stream.job.id, elsewhere.dispatcher.mailbox.web, 0, anew=False))
    assert relay._mirrors
    await until(lambda: not relay._mirrors)


async def test_whoever_answers_and_says_nothing_is_given_up(desk, elsewhere, node):
    elsewhere.replicas.ask_seconds = elsewhere.replicas.lapse_seconds = 0.05
    stream = await Stream(desk, node).begin()
    async with elsewhere.replicas.of(stream.job.id, stream.job.web) as tail:  # nothing relays there
        await until(lambda: tail.lost)


@pytest.mark.parametrize("proof", ["", "0" * 64])
async def test_a_node_cannot_have_an_answer_sent_elsewhere(desk, relay, node, wire, proof):
    stream = await Stream(desk, node).begin()
    web = desk.dispatcher.mailbox.web
    asked = question(stream.job.id, "f" * 16, 0, anew=False)
    wire.xadd(reply_key(web), {"w": f"{asked} {proof}"}, nomkstream=True)
    await until(lambda: desk.dispatcher.mailbox.stale == 1)
    assert not relay._mirrors


async def test_a_question_proves_nothing_but_itself(desk, relay, elsewhere, node):
    """What asks to watch a job cannot be turned into what cancels it."""
    stream = await Stream(desk, node).begin()
    web = desk.dispatcher.mailbox.web
    mailbox = elsewhere.dispatcher.mailbox
    await mailbox._ask(web, b"w", question(stream.job.id, mailbox.web, 0, anew=False))
    await until(lambda: relay._mirrors)
    assert not stream.job.ended
    await asyncio.gather(*(m.task for m in relay._mirrors.values()), return_exceptions=True)
