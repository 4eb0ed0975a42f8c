"""What the watch finds: limits, lost nodes, an emptied Redis, slots that nobody knows of."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async

from gputorrent.redis import Pipe, asynchronous
from jobs import errors
from jobs.board import Board
from jobs.models import JobState
from nodes import steering, view
from tests.jobs.scripted import ScriptedNode, until, work
from tests.nodes.agents import enrol, model
from worker_agent.contract import Cancel, Load, ModelState, Outcome, decode_work, inbox_key, lease_key

A, B = "a" * 16, "b" * 16


@pytest.fixture
async def node(desk, wire) -> ScriptedNode:
    node = ScriptedNode(wire)
    await desk.refresh()
    return node


# -- limits --------------------------------------------------------------------------------------------


async def test_who_waits_too_long_is_told_so(desk, node, settings, wire):
    settings.QUEUE_SECONDS = 30
    first, second = desk.ask(), desk.ask()
    running = await node.take()
    await until(lambda: second.job)
    await desk.look(later=29)
    assert not second.task.done()
    await desk.look(later=31)
    with pytest.raises(errors.QueueTimeout, match="30 s"):
        await second.first()
    assert wire.zcard("gt:board:waiting") == 0
    assert (await desk.row(second.job)).state == JobState.EXPIRED
    node.done(running)
    await first.first()


async def test_a_model_that_is_not_loaded_in_time_is_still_loading(desk, wire, settings):
    settings.LOAD_SECONDS = 100
    node = ScriptedNode(wire, state=ModelState.OFFERED)
    await desk.refresh()
    asking = desk.ask()
    await until(lambda: asking.job)
    await desk.look(later=99)
    assert not asking.task.done()
    assert Load("m") in node.controls()
    await desk.look(later=101)
    with pytest.raises(errors.ModelLoading):
        await asking.first()


async def test_a_stream_that_does_not_begin_is_given_up(desk, node, settings):
    settings.FIRST_TOKEN_SECONDS = 20
    asking = desk.ask()
    item = await node.take()
    await desk.look(later=20)
    assert not asking.task.done()
    await desk.look(later=22)
    with pytest.raises(errors.FirstTokenTimeout):
        await asking.first()
    assert await desk.held() == 0
    assert node.controls() == [Cancel(item.job, 1)]


async def test_a_whole_answer_has_all_the_time_there_is(desk, node, settings):
    settings.FIRST_TOKEN_SECONDS, settings.TOTAL_SECONDS = 20, 100
    asking = desk.ask(stream=False)
    await node.take()
    await desk.look(later=100)
    assert not asking.task.done()
    await desk.look(later=102)
    with pytest.raises(errors.UpstreamFailed, match="too long"):
        await asking.first()


async def test_a_stream_that_stalls_is_given_up(desk, node, settings):
    settings.STALL_SECONDS = 5
    asking = desk.ask()
    item = await node.take()
    node.chunk(item, 0, b"data: 1\n\n")
    await asking.first()
    await desk.look(later=5)
    assert not asking.job.current.outcome
    await desk.look(later=7)
    with pytest.raises(errors.UpstreamFailed, match="stopped coming"):
        await asking.rest()
    assert await desk.held() == 0
    assert node.controls() == [Cancel(item.job, 1)]


async def test_a_stream_that_does_not_end_is_ended_from_here(desk, node, settings):
    settings.TOTAL_SECONDS, settings.STALL_SECONDS = 100, 1000
    asking = desk.ask()
    item = await node.take()
    node.chunk(item, 0, b"data: 1\n\n")
    await asking.first()
    await desk.look(later=100)
    assert not asking.job.current.outcome
    await desk.look(later=102)
    with pytest.raises(errors.UpstreamFailed, match="too long"):
        await asking.rest()
    assert await desk.held() == 0
    assert node.controls() == [Cancel(item.job, 1)]
    (attempt,) = (await desk.row(asking.job)).attempts.all()
    assert attempt.outcome == "total_timeout"


# -- lost nodes ----------------------------------------------------------------------------------------


async def test_a_node_that_falls_silent_loses_its_work_to_another(desk, wire, node):
    other = ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    await node.take()
    node.die()
    await desk.refresh()
    await desk.look(times=2)  # one unlucky look is not a death
    assert not asking.job.current.outcome
    await desk.look()
    again = await other.take()
    assert again.attempt == 2
    other.done(again)
    await asking.first()
    row = await desk.row(asking.job)
    assert [a.outcome for a in row.attempts.all()] == ["node_lost", "done"]
    assert await desk.held() == 0


async def test_a_lease_that_comes_back_between_two_looks_is_no_loss(desk, node):
    asking = desk.ask()
    await node.take()
    for _ in range(3):
        node.die()
        await desk.refresh()
        await desk.look(times=2)
        node.live()
        await desk.refresh()
        await desk.look()
    assert not asking.job.current.outcome
    await asking.leave()


async def test_a_stream_whose_node_dies_ends_with_an_error(desk, node):
    asking = desk.ask()
    node.chunk(await node.take(), 0, b"data: 1\n\n")
    await asking.first()
    node.die()
    await desk.refresh()
    await desk.look(times=3)
    with pytest.raises(errors.UpstreamFailed, match="silent"):
        await asking.rest()


async def test_a_stream_of_a_node_that_is_revoked_ends_at_the_next_look(desk, node, wire):
    asking = desk.ask()
    node.chunk(await node.take(), 0, b"data: 1\n\n")
    await asking.first()
    node.node.state = "revoked"
    node.publish()
    await desk.refresh()
    await desk.look(later=2)
    with pytest.raises(errors.UpstreamFailed, match="revoked"):
        await asking.rest()


async def test_a_node_that_restarted_has_forgotten_its_work(desk, wire, node):
    other = ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    await node.take()
    node.node.incarnation = 2
    node.publish()
    await desk.refresh()
    await desk.look()
    other.done(await other.take())
    await asking.first()


async def test_who_may_use_other_nodes_is_judged_by_those(desk, wire, node, settings):
    settings.LEASE_SECONDS = 6
    other = ScriptedNode(wire, B)
    await desk.refresh()
    here, there = frozenset({node.id}), frozenset({B})
    busy = [desk.ask(only=here), desk.ask(only=there)]
    await node.take()
    await other.take()
    first, second = desk.ask(only=here), desk.ask(only=there)
    await until(lambda: first.job and second.job)
    other.die()
    await desk.refresh()
    await desk.look(later=7)
    with pytest.raises(errors.NoWorkers):
        await second.first()
    assert not first.task.done()
    assert not busy[0].task.done()


async def test_who_has_failed_elsewhere_is_judged_by_the_nodes_that_are_left(desk, wire, node, settings):
    settings.LEASE_SECONDS = 6
    other = ScriptedNode(wire, B)
    await desk.refresh()
    desk.ask(only=frozenset({node.id}))
    await node.take()
    failing = desk.ask()
    work = await other.take()
    next_ = desk.ask()
    await until(lambda: failing.job and next_.job)
    other.fail(work, Outcome.ENGINE_ERROR)  # `next_` gets the slot, `failing` waits for the other node
    await other.take()
    await until(lambda: failing.job.attempt == 2)
    last = desk.ask()
    await until(lambda: last.job)
    node.die()
    await desk.refresh()
    await desk.look(later=7)
    with pytest.raises(errors.UpstreamFailed, match="no node could answer"):
        await failing.first()
    assert not last.task.done()


async def test_who_waits_for_a_node_that_never_comes_back_is_told(desk, node, settings):
    settings.LEASE_SECONDS = 6
    first, second = desk.ask(), desk.ask()
    await node.take()
    await until(lambda: second.job)
    node.die()
    await desk.refresh()
    await desk.look(later=5)
    assert not second.task.done()
    await desk.look(later=7)
    with pytest.raises(errors.NoWorkers):
        await second.first()
    await first.leave()


# -- an emptied Redis ----------------------------------------------------------------------------------


async def test_work_that_redis_lost_is_placed_again_on_the_same_node(desk, wire):
    row, _ = await sync_to_async(enrol)(models=[model(slots=2)])
    wire.set(view.ALIVE, "1")
    wire.set(lease_key(row.pk), "1")
    await desk.refresh()
    asking = desk.ask()
    await until(lambda: asking.job and asking.job.node)
    wire.flushall()
    await desk.refresh()
    await until(lambda: asking.job.attempt == 2 and wire.zcard("gt:board:waiting"))  # the lease is still away
    assert wire.hgetall(view.SLOTS) == {f"{row.pk}/m".encode(): b"2"}
    await desk.refresh()
    with_waiter = desk.ask()  # nor is anybody who comes meanwhile turned away
    await until(lambda: wire.zcard("gt:board:waiting") == 2)
    wire.set(lease_key(row.pk), "1")
    await desk.refresh()
    entries = await until(lambda: wire.xrange(inbox_key(row.pk)))
    items = [decode_work(fields[b"m"]) for _, fields in entries]
    assert {(i.job, i.attempt) for i in items} == {(asking.job.id, 2), (with_waiter.job.id, 1)}
    node = ScriptedNode.__new__(ScriptedNode)
    node.wire = wire
    for item in items:
        node.done(item)
    await asyncio.gather(asking.first(), with_waiter.first())
    assert [t.outcome for t in asking.job.tries] == ["wire_lost", "done"]
    assert await desk.held() == 0


async def test_a_stream_that_has_begun_goes_on_through_an_emptied_redis(desk, wire):
    row, _ = await sync_to_async(enrol)()
    wire.set(view.ALIVE, "1")
    wire.set(lease_key(row.pk), "1")
    await desk.refresh()
    asking = desk.ask()
    node = ScriptedNode.__new__(ScriptedNode)
    node.wire, node.id = wire, row.pk
    item = await node.take()
    node.chunk(item, 0, b"data: 1\n\n")
    await asking.first()
    wire.flushall()
    await desk.refresh()
    node.chunk(item, 1, b"data: 2\n\n")
    node.done(item, 2, b"data: [DONE]\n\n")
    assert b"".join(await asking.rest()) == b"data: 2\n\ndata: [DONE]\n\n"


async def test_a_wait_for_the_ledger_costs_no_attempts(desk, wire, node):
    asking = desk.ask()
    await node.take()
    wire.flushall()
    wire.set("gt:healing", "another process")  # it rebuilds, and takes its time
    for _ in range(5):
        await desk.refresh()
    await until(lambda: asking.job.attempt == 2)
    await desk.settled()
    assert (asking.job.attempt, asking.job.current.outcome) == (2, "")
    assert not asking.task.done()
    await asking.leave()


async def test_the_registry_is_rebuilt_by_the_first_who_notices(desk, wire):
    row, _ = await sync_to_async(enrol)()
    wire.flushall()
    await desk.refresh()
    assert wire.exists(view.ALIVE)
    assert set(desk.dispatcher.outlook.snapshot.nodes) == {row.pk}


# -- slots ---------------------------------------------------------------------------------------------


async def test_slots_of_a_web_process_that_is_gone_are_given_back(desk, wire):
    node = ScriptedNode(wire, slots=3)
    client = asynchronous()
    board = Board(Pipe(client))
    wire.set("gt:web:alive", "1")
    for job, owner in (("j1", "dead"), ("j2", "alive"), ("j3", "")):
        await board.reserve(work(job, reply=owner), [node.id], tenant="t", wait_seconds=0)
    await client.aclose()
    await desk.watch.recount()
    assert len(await desk.dispatcher.board.held()) == 3  # it may be about to say that it lives
    for key in wire.keys("gt:gone:*"):
        wire.set(key, "1")  # long ago
    await desk.watch.recount()
    assert {h.job for h in await desk.dispatcher.board.held()} == {"j2", "j3"}
    assert desk.watch.healed == 1
    assert node.controls() == [Cancel("j1", 1)]


async def test_a_slot_of_ours_that_no_job_knows_is_given_back_after_a_while(desk, wire, node):
    asking = desk.ask()
    item = await node.take()
    del desk.dispatcher.jobs[item.job]
    await desk.watch.recount()
    assert await desk.held() == 1
    key = f"gt:board:slots:{node.place}"
    lease, owner, size, placed_at = wire.hget(key, f"{item.job}:1").decode().split(" ")
    wire.hset(key, f"{item.job}:1", f"{lease} {owner} {size} {int(placed_at) - 60_000}")
    await desk.watch.recount()
    assert await desk.held() == 0
    await asking.leave()


async def test_a_slot_of_a_live_job_stays(desk, wire, node):
    asking = desk.ask()
    item = await node.take()
    key = f"gt:board:slots:{node.place}"
    lease, owner, size, _ = wire.hget(key, f"{item.job}:1").decode().split(" ")
    wire.hset(key, f"{item.job}:1", f"{lease} {owner} {size} 1")
    await desk.watch.recount()
    assert await desk.held() == 1
    await asking.leave()


async def test_the_snapshot_follows_the_registry(desk, wire):
    row, _ = await sync_to_async(enrol)()
    await desk.refresh()
    assert desk.dispatcher.outlook.snapshot.leased == frozenset()
    wire.set(lease_key(row.pk), "1")
    await desk.refresh()
    assert desk.dispatcher.outlook.snapshot.leased == {row.pk}
    await sync_to_async(steering.revoke)(row, "ann")
    await desk.refresh()
    assert desk.dispatcher.outlook.snapshot.nodes == {}
    assert desk.dispatcher.outlook.snapshot.by_model == {}
