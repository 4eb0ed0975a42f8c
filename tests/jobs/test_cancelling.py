"""Jobs ended from outside: wherever they are, once and for all, and their callers are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from jobs import asynchronous as verbs
from jobs import cancelling, errors, mailbox
from jobs.board import Board
from jobs.dispatch import Dispatcher
from jobs.models import Attempt, Job, JobState
from nodes.registry import Refusal
from tests.jobs import deferred
from tests.jobs.scripted import ScriptedNode, done, until
from tests.nodes.agents import controls
from worker_agent.contract import (
    Cancel,
    Outcome,
    reply_key,
)


@pytest.fixture
async def node(desk, wire) -> ScriptedNode:
    node = ScriptedNode(wire)
    await desk.refresh()
    return node


def cancel(desk, asking) -> bool:
    return desk.dispatcher.cancel(asking.job.id, errors.Cancelled())


# -- a job whose caller waits here ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_before_the_first_byte_the_caller_is_told_and_the_node_stops(desk, node, stream):
    asking = desk.ask(stream=stream)
    work = await node.take()
    await until(lambda: asking.job)
    assert cancel(desk, asking)
    with pytest.raises(errors.Cancelled):
        await asking.first()
    await desk.settled()
    assert node.controls() == [Cancel(work.job, 1)]
    assert await desk.held() == 1  # the engine may still be at it
    node.fail(work, Outcome.CANCELLED)
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    assert await desk.cancelled(asking.job, "cancelled") == [Outcome.CANCELLED]
    assert not cancel(desk, asking)


async def test_in_the_middle_of_a_stream_what_has_come_is_passed_on_first(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    node.chunk(work, 1, b"data: 2\n\n")
    await until(lambda: asking.job._events)
    assert cancel(desk, asking)
    node.chunk(work, 2, b"data: 3\n\n")
    await asyncio.sleep(0.05)
    async with aclosing(desk.dispatcher.follow(asking.job)) as rest:
        assert await anext(rest) == b"data: 2\n\n"
        with pytest.raises(errors.Cancelled):
            await anext(rest)
    assert node.controls() == [Cancel(work.job, 1)]
    node.fail(work, Outcome.CANCELLED, 3)
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    await desk.cancelled(asking.job, "cancelled")


async def test_a_caller_who_never_reads_on_keeps_nothing_from_ending(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    assert cancel(desk, asking)
    node.fail(work, Outcome.CANCELLED, 1)
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    await desk.cancelled(asking.job, "cancelled")
    desk.dispatcher.abandon(asking.job)
    await desk.cancelled(asking.job, "cancelled")


async def test_a_whole_answer_that_nobody_has_read_yet_is_not_given_out(desk, node):
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    node.done(work, 1, b"data: [DONE]\n\n")
    await until(lambda: asking.job.current.outcome)
    assert cancel(desk, asking)
    with pytest.raises(errors.Cancelled):
        await asking.rest()
    assert await desk.cancelled(asking.job, "cancelled") == ["done"]
    assert node.controls() == []


async def test_while_it_waits_in_the_queue(desk, node, wire):
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: wire.zcard("gt:board:waiting") and second.job)
    assert cancel(desk, second)
    with pytest.raises(errors.Cancelled):
        await second.first()
    await desk.settled()
    assert wire.zcard("gt:board:waiting") == 0
    node.done(work)
    await first.first()
    assert await desk.cancelled(second.job, "cancelled") == [Outcome.CANCELLED]
    assert node.inbox() == []


async def test_in_the_moment_the_board_places_it(desk, node):
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: second.job)
    await desk.dispatcher.board.release(node.id, "m", work.job, 1)  # the word of it is still on its way
    assert cancel(desk, second)
    with pytest.raises(errors.Cancelled):
        await second.first()
    following = await node.take()
    await until(lambda: second.job.node)
    await desk.look()
    assert node.controls() == [Cancel(following.job, 1)]
    await first.leave()
    await desk.look(later=6)
    assert await desk.held() == 0
    assert desk.dispatcher.jobs == {}


@pytest.mark.parametrize("turns", range(6))
async def test_at_any_step_on_the_way_to_a_node(desk, node, turns):
    asking = desk.ask()
    for _ in range(turns):
        await asyncio.sleep(0)
    for job_id in list(desk.dispatcher.jobs):
        assert desk.dispatcher.cancel(job_id, errors.Cancelled())
        with pytest.raises(errors.Cancelled):
            await asking.first()
    await asking.leave(at_once=True)
    await asyncio.sleep(0.05)
    await desk.look()
    await desk.look(later=6)
    assert await desk.held() == 0
    assert desk.dispatcher.jobs == {}
    assert len(node.inbox()) == len(node.controls())


async def test_between_two_attempts_no_other_node_gets_it(desk, wire, node):
    other, third = ScriptedNode(wire, "b" * 16), ScriptedNode(wire, "c" * 16)
    await desk.refresh()
    asking = desk.ask()
    node.fail(await node.take(), Outcome.ENGINE_DIED)
    other.fail(await other.take(), Outcome.ENGINE_DIED)  # the second of a kind is followed by a pause
    await until(lambda: asking.job.attempt == 2 and asking.job.current.outcome)
    await asyncio.sleep(0)
    assert cancel(desk, asking)
    with pytest.raises(errors.Cancelled):
        await asking.first()
    assert third.inbox() == []
    assert await desk.cancelled(asking.job, "cancelled") == ["engine_died", "engine_died"]


async def test_what_has_ended_stays_as_it_is(desk, node):
    asking = desk.ask(stream=False)
    node.done(await node.take())
    await asking.first()
    assert not cancel(desk, asking)
    row = await desk.row(asking.job)
    await cancelling.cancel(desk.dispatcher, row)
    after = await desk.row(asking.job)
    assert (after.state, after.version, after.error_code) == (JobState.COMPLETED, row.version, "")


# -- a job whose caller waits elsewhere ----------------------------------------------------------------


@pytest.fixture
async def other(desk) -> AsyncIterator[Dispatcher]:
    """Another web process, as far as Redis and the ledger can tell."""
    dispatcher = Dispatcher()
    await dispatcher.start()
    yield dispatcher
    await dispatcher.stop()


async def test_the_process_that_answers_it_is_asked(desk, node, other, settings):
    asking = desk.ask()
    work = await node.take()
    await until(lambda: asking.job)
    row = await desk.row(asking.job)
    assert row.web == desk.dispatcher.mailbox.web
    settings.RECORD_SECONDS = 0.01
    desk.dispatcher.recorder.start()
    await cancelling.cancel(other, row)
    assert (await Job.objects.aget()).state == JobState.CANCELLED
    with pytest.raises(errors.Cancelled):
        await asking.first()
    assert node.controls() == [Cancel(work.job, 1)]
    assert desk.dispatcher.mailbox.stale == 0


@pytest.mark.parametrize("wrong", ["empty", "guessed", "binary", "of another job", "of another process"])
async def test_a_node_cannot_have_a_job_cancelled(desk, node, wire, wrong):
    asking = desk.ask()
    work = await node.take()
    await until(lambda: asking.job)
    web = desk.dispatcher.mailbox.web
    proof = {
        "empty": "",
        "guessed": "0" * 64,
        "binary": "\xff\0",
        "of another job": mailbox._proof(web, b"c", "f" * 32),
        "of another process": mailbox._proof("f" * 16, b"c", work.job),
    }[wrong]
    wire.xadd(reply_key(web), {"c": f"{work.job} {proof}"}, nomkstream=True)
    await until(lambda: wire.xlen(reply_key(web)) == 0)
    assert desk.dispatcher.mailbox.stale == 1
    assert not asking.job.ended
    node.done(work)
    await asking.first()


async def test_where_its_process_is_gone_it_ends_in_the_ledger(desk, node, other):
    asking = desk.ask()
    work = await node.take()
    await until(lambda: asking.job)
    row = await desk.row(asking.job)
    row.web = "gone"
    await cancelling.cancel(other, row)
    row = await Job.objects.prefetch_related("attempts").aget()
    assert (row.state, row.error_code) == (JobState.CANCELLED, "cancelled")
    assert [a.outcome for a in row.attempts.all()] == [Outcome.CANCELLED]
    assert node.controls() == [Cancel(work.job, 1)]
    await asking.leave()


# -- a job nobody waits for ----------------------------------------------------------------------------


@pytest.fixture
def deferred_cancel(desk):
    """Cancel an asynchronous job, as a web process does."""

    async def cancel(job) -> Job:
        await cancelling.cancel(desk.dispatcher, await Job.objects.aget(pk=job.id))
        return await Job.objects.aget(pk=job.id)

    return cancel


@pytest.fixture
async def box(wire, ledger):
    return await sync_to_async(deferred.a_node)(wire)


def ended(row) -> None:
    assert (row.state, row.error_code, row.request) == (JobState.CANCELLED, "cancelled", None)
    assert row.finished_at


async def test_before_it_is_routed(desk, wire, box, deferred_cancel):
    job = await sync_to_async(deferred.submit)()
    ended(await deferred_cancel(job))
    ended(await deferred_cancel(job))
    assert await verbs.route(job.id) == "not pending"
    assert await sync_to_async(deferred.inbox)(wire, box) == []


async def test_while_it_waits_on_the_board(desk, wire, box, deferred_cancel):
    running, waiting = [await sync_to_async(deferred.submit)() for _ in range(2)]
    await verbs.route(running.id)
    assert (await verbs.route(waiting.id)).startswith("waiting")
    ended(await deferred_cancel(waiting))
    assert wire.zcard("gt:board:waiting") == 0
    assert controls(wire, box) == []
    assert (await Attempt.objects.aget(job=waiting.id)).outcome == Outcome.CANCELLED
    assert (await Job.objects.aget(pk=running.id)).state == JobState.RUNNING


@pytest.mark.parametrize("begun", [False, True])
async def test_once_a_node_has_it_the_node_stops_and_gives_the_slot_back(
    desk, wire, box, deferred_cancel, begun
):
    job = await sync_to_async(deferred.submit)()
    await verbs.route(job.id)
    (item,) = await sync_to_async(deferred.inbox)(wire, box)
    if begun:
        await sync_to_async(deferred.report)(box, item)
    ended(await deferred_cancel(job))
    assert controls(wire, box) == [Cancel(job.id, 1)]
    await sync_to_async(deferred.report)(box, item, deferred.failed(item, Outcome.CANCELLED))
    assert await desk.held() == 0
    ended(await Job.objects.aget(pk=job.id))


async def test_placed_from_the_queue_without_a_word_yet(desk, wire, box, deferred_cancel):
    running, waiting = [await sync_to_async(deferred.submit)() for _ in range(2)]
    await verbs.route(running.id)
    await verbs.route(waiting.id)
    (item,) = await sync_to_async(deferred.inbox)(wire, box)
    await sync_to_async(deferred.report)(box, item, done(item))
    (item,) = await sync_to_async(deferred.inbox)(wire, box)
    assert item.job == waiting.id
    ended(await deferred_cancel(waiting))
    assert controls(wire, box) == [Cancel(waiting.id, 1)]
    with pytest.raises(Refusal):  # a node that missed it hears when it begins
        await sync_to_async(deferred.report)(box, item)
    assert await desk.held() == 0


@sync_to_async
def execute(sqlite: str, postgresql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sqlite if connection.vendor == "sqlite" else postgresql)


@pytest.fixture
async def cancelled_when_claimed(ledger):
    """The database itself cancels a job in the moment its next attempt is claimed."""
    update = "UPDATE jobs_job SET state = 'cancelled'"
    await execute(
        f"CREATE TRIGGER cancels AFTER INSERT ON jobs_attempt BEGIN {update}; END",
        f"CREATE RULE cancels AS ON INSERT TO jobs_attempt DO ALSO {update}",
    )
    yield
    await execute("DROP TRIGGER cancels", "DROP RULE cancels ON jobs_attempt")


@pytest.mark.parametrize("full", [False, True])
async def test_cancelled_between_claim_and_placing(desk, wire, box, cancelled_when_claimed, full):
    if full:
        wire.hset("gt:nodes:slots", f"{box.pk}/m", 0)
    job = await sync_to_async(deferred.submit)()
    assert await verbs.route(job.id) == "ended meanwhile"
    assert wire.zcard("gt:board:waiting") == 0
    assert controls(wire, box) == ([] if full else [Cancel(job.id, 1)])


async def test_after_the_end_what_is_kept_of_it_is_dropped(desk, wire, box, deferred_cancel):
    job = await sync_to_async(deferred.submit)()
    await verbs.route(job.id)
    (item,) = await sync_to_async(deferred.inbox)(wire, box)
    await sync_to_async(deferred.report)(box, item, done(item, body=b'{"a":1}'))
    assert (await Job.objects.aget()).result
    row = await deferred_cancel(job)
    assert (row.state, row.result, row.request) == (JobState.COMPLETED, None, None)


# -- keys ----------------------------------------------------------------------------------------------


async def test_jobs_of_dead_keys_end_in_the_ledger(desk, wire, box, pipe):
    from api.authentication import new_key, revoke

    make = sync_to_async(new_key)
    (good, _), (bad, _), (old, _) = [await make(name) for name in ("good", "bad", "old")]
    old.expires_at = deferred.ago(seconds=1)
    await old.asave()
    jobs = {name: await sync_to_async(deferred.submit)(key=k.pk) for name, k in
            (("good", good), ("bad", bad), ("old", old))}  # fmt: skip
    await verbs.route(jobs["bad"].id)
    await sync_to_async(revoke)(bad)
    assert await cancelling.end_those_of_dead_keys(Board(pipe), pipe) == 2
    assert await cancelling.end_those_of_dead_keys(Board(pipe), pipe) == 0
    rows = {name: await Job.objects.aget(pk=job.id) for name, job in jobs.items()}
    assert {n: (r.state, r.error_code) for n, r in rows.items()} == {
        "good": (JobState.PENDING, ""),
        "bad": (JobState.CANCELLED, "invalid_api_key"),
        "old": (JobState.CANCELLED, "invalid_api_key"),
    }
    assert controls(wire, box) == [Cancel(jobs["bad"].id, 1)]
