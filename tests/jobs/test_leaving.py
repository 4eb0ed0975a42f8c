"""Callers who leave: the work stops, and the slot comes back, at whatever moment it is."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from jobs import errors
from jobs.models import JobState
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Cancel, Outcome


@pytest.fixture
async def node(desk, wire) -> ScriptedNode:
    node = ScriptedNode(wire)
    await desk.refresh()
    return node


async def test_before_the_first_byte_the_node_is_told_and_the_slot_waits_for_its_word(desk, node):
    asking = desk.ask()
    work = await node.take()
    await asking.leave()
    await desk.settled()
    assert node.controls() == [Cancel(work.job, 1)]
    await desk.look()
    assert await desk.held() == 1  # the engine may still be at it
    node.fail(work, Outcome.CANCELLED)
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    assert await desk.cancelled(asking.job, "client_closed") == [Outcome.CANCELLED]
    assert node.controls() == []


async def test_a_node_that_does_not_answer_gives_its_slot_back_too(desk, node):
    asking = desk.ask()
    await node.take()
    await asking.leave()
    await desk.look()
    assert await desk.held() == 1
    await desk.look(later=6)
    assert await desk.cancelled(asking.job, "client_closed") == [Outcome.CANCELLED]


async def test_in_the_middle_of_a_stream(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    async with aclosing(desk.dispatcher.follow(asking.job)) as rest:
        node.chunk(work, 1, b"data: 2\n\n")
        assert await anext(rest) == b"data: 2\n\n"
    await desk.settled()
    assert node.controls() == [Cancel(work.job, 1)]
    await desk.look(later=6)
    await desk.cancelled(asking.job, "client_closed")


@pytest.mark.parametrize("end", ["done", "failed"])
async def test_just_as_the_answer_ends(desk, node, end):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    if end == "done":
        node.done(work, 1)
    else:
        node.fail(work, Outcome.ENGINE_DIED, 1)
    await until(lambda: asking.job.current.outcome)
    desk.dispatcher.abandon(asking.job)
    assert await desk.held() == 0
    assert node.controls() == []
    await desk.cancelled(asking.job, "client_closed")


async def test_just_after_we_gave_the_attempt_up_ourselves(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    node.chunk(work, 5, b"data: 6\n\n")
    await until(lambda: asking.job.current.outcome)
    desk.dispatcher.abandon(asking.job)
    assert await desk.held() == 0
    assert node.controls() == [Cancel(work.job, 1)]
    await desk.cancelled(asking.job, "client_closed")


async def test_while_waiting_in_the_queue(desk, node, wire):
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: wire.zcard("gt:board:waiting"))
    await until(lambda: second.job)
    await second.leave()
    await desk.settled()
    assert wire.zcard("gt:board:waiting") == 0
    assert list(desk.dispatcher.jobs) == [work.job]
    node.done(work)
    await first.first()
    assert await desk.cancelled(second.job, "client_closed") == [Outcome.CANCELLED]
    assert node.inbox() == []
    assert wire.keys("gt:board:*") == []


async def test_in_the_moment_the_board_places_it(desk, node, wire):
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: second.job)
    await desk.dispatcher.board.release(node.id, "m", work.job, 1)  # the word of it is still on its way
    await second.leave()
    following = await node.take()
    await until(lambda: second.job.node)
    await desk.look()
    assert node.controls() == [Cancel(following.job, 1)]
    node.fail(following, Outcome.CANCELLED)
    await until(lambda: second.job.current.outcome)
    await desk.look()
    await first.leave()
    await desk.look(later=6)
    assert await desk.held() == 0
    assert desk.dispatcher.jobs == {}


@pytest.mark.parametrize("turns", range(6))
async def test_at_any_step_on_the_way_to_a_node(desk, node, turns):
    asking = desk.ask()
    for _ in range(turns):
        await asyncio.sleep(0)
    await asking.leave(at_once=True)
    await asyncio.sleep(0.05)
    await desk.settled()
    await desk.look()
    await desk.look(later=6)
    assert await desk.held() == 0
    assert desk.dispatcher.jobs == {}
    assert len(node.inbox()) == len(node.controls())


async def test_between_two_attempts(desk, wire, node):
    other = ScriptedNode(wire, "b" * 16)
    third = ScriptedNode(wire, "c" * 16)
    await desk.refresh()
    asking = desk.ask()
    node.fail(await node.take(), Outcome.ENGINE_DIED)
    other.fail(await other.take(), Outcome.ENGINE_DIED)  # the second of a kind is followed by a pause
    await until(lambda: asking.job.attempt == 2 and asking.job.current.outcome)
    await asyncio.sleep(0)
    await asking.leave()
    assert third.inbox() == []
    assert await desk.cancelled(asking.job, "client_closed") == ["engine_died", "engine_died"]


async def test_who_has_had_everything_cancels_nothing(desk, node):
    asking = desk.ask(stream=False)
    work = await node.take()
    node.done(work)
    await asking.first()
    desk.dispatcher.abandon(asking.job)
    await desk.settled()
    assert node.controls() == []
    assert (await desk.row(asking.job)).state == JobState.COMPLETED


async def test_a_slow_reader_loses_the_answer_and_the_slot_is_free_at_once(desk, node, settings):
    settings.STREAM_BUFFER_BYTES = 10
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    for n in range(1, 5):
        node.chunk(work, n, b"data: 2\n\n")
    await until(lambda: asking.job.current.outcome)
    await desk.look()  # nobody has read on
    assert await desk.held() == 0
    assert node.controls() == [Cancel(work.job, 1)]
    with pytest.raises(errors.UpstreamFailed, match="more slowly"):
        await asking.rest()
    assert await desk.held() == 0
    assert node.controls() == []
    assert (await desk.row(asking.job)).state == JobState.FAILED


async def test_a_finished_answer_holds_no_slot_for_a_reader_who_takes_his_time(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    node.done(work, 1, b"data: [DONE]\n\n")
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    assert await desk.held() == 0
    assert await asking.rest() == [b"data: [DONE]\n\n"]
    assert (await desk.row(asking.job)).state == JobState.COMPLETED


async def test_when_the_process_stops_everything_it_holds_is_cancelled(wire, ledger, settings):
    from tests.jobs.desk import Desk

    settings.RECORD_SECONDS = 3600
    node, desk = ScriptedNode(wire), Desk()
    await desk.dispatcher.start()
    await desk.refresh()
    asking, waiting = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: waiting.job)
    await desk.dispatcher.stop()
    assert node.controls() == [Cancel(work.job, 1)]
    assert wire.zcard("gt:board:waiting") == 0
    for asked in (asking, waiting):
        await asked.leave()
