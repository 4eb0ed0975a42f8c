"""Ledger, board and agents' lists are made to differ; the sweep heals and counts it, and nothing else."""

from __future__ import annotations

import threading

import msgspec
import pytest
from django.db import connections
from django.utils import timezone

from jobs import lifecycle, retention, tasks
from jobs.interactive import InteractiveJob, new_job_id
from jobs.lifecycle import Move
from jobs.models import Attempt, Job, JobState
from jobs.owners import SETTLED_SECONDS
from nodes import listing, view
from nodes.listing import Listing
from nodes.models import Node
from tests.jobs.deferred import (
    a_node,
    age,
    ago,
    healed,
    inbox,
    on_board,
    queued,
    report,
    route,
    submit,
    sweep,
)
from tests.jobs.desk import request
from tests.jobs.scripted import work
from tests.nodes.agents import controls
from worker_agent.contract import Cancel, Work

pytestmark = pytest.mark.django_db(transaction=True)

WEB = "c" * 16


@pytest.fixture
def node(wire) -> Node:
    return a_node(wire)


def now(wire) -> float:
    return listing.seconds(wire.time())


def lists(wire, node: Node, *attempts: str, before: float = 1.0, incarnation: int = 1) -> None:
    """What the last two beats said, the earlier of them `before` seconds ago."""
    at = now(wire)
    both = Listing(at, incarnation, frozenset(attempts), at - before, frozenset(attempts))
    wire.hset(listing.KEY, node.pk, msgspec.msgpack.encode(both))


def started(wire, node: Node, minutes: int = 5) -> tuple[Job, Work]:
    """An asynchronous job that has been running for so long."""
    job = submit()
    route(job)
    (item,) = inbox(wire, node)
    report(node, item)
    Job.objects.filter(pk=job.pk).update(placed_at=ago(minutes=minutes))
    Node.objects.update(registered_at=ago(hours=1))
    age(wire, minutes * 60)
    return job, item


# -- web processes that are gone -----------------------------------------------------------------------


def answered_by(web: str = WEB) -> InteractiveJob:
    """A job whose caller waits at that process; its row is written."""
    job = InteractiveJob(new_job_id(), request(), 100, web)
    job.claim()
    job.on_placed("a" * 16, 1)
    write(job)
    return job


def write(job: InteractiveJob) -> None:
    row, attempts = job.record()
    lifecycle.write_behind([row], attempts)


def long_absent(wire) -> None:
    """As if a first sweep had seen its absence long ago."""
    for key in wire.keys("gt:gone:*"):
        wire.set(key, "1")


def test_the_open_rows_of_a_web_process_that_is_gone_fail(wire):
    job = answered_by()
    sweep()
    assert Job.objects.get().state == JobState.RUNNING  # seen absent once
    long_absent(wire)
    assert sweep()["healed"] == 1
    row = Job.objects.get()
    assert (row.state, row.error_code) == (JobState.FAILED, "coordinator_lost")
    assert row.finished_at
    assert row.attempts.get().outcome == "coordinator_lost"
    assert healed(wire) == {"record": 1}
    job.move(Move.COMPLETE)  # it was only frozen, and writes what it knows
    job.attempt_over("done")
    write(job)
    row = Job.objects.get()
    assert (row.state, row.attempts.get().outcome) == (JobState.FAILED, "coordinator_lost")


@pytest.mark.parametrize(
    "why", ["it lives", "it came back", "redis was emptied a moment ago", "it has ended"]
)
def test_rows_that_only_look_forsaken_are_left_alone(wire, why):
    job = answered_by()
    sweep()
    long_absent(wire)
    if why == "it has ended":
        job.move(Move.COMPLETE)
        write(job)
    elif why == "redis was emptied a moment ago":
        wire.set(view.ALIVE, int(now(wire) - SETTLED_SECONDS + 5))
    else:
        wire.set(f"gt:web:{WEB}", "1")
    sweep()
    if why == "it came back":
        wire.delete(f"gt:web:{WEB}")
        sweep()  # its absence is counted anew
    assert Job.objects.get().state == job.state
    assert healed(wire) == {}


def test_an_asynchronous_job_does_not_mind(wire):
    submit()
    answered_by()
    sweep()
    long_absent(wire)
    sweep()
    assert Job.objects.get(asynchronous=True).state == JobState.PENDING


def test_slots_and_places_in_the_queue_of_a_web_process_that_is_gone_come_back(wire, node):
    placed, waiting = work(new_job_id(), reply=WEB), work(new_job_id(), reply=WEB)
    for item in (placed, waiting):
        reserve(item, node)
    sweep()
    assert len(on_board("held")) == 1
    long_absent(wire)
    sweep()
    assert on_board("held") == []
    assert on_board("waiting") == []
    assert healed(wire) == {"slot": 1, "waiter": 1}
    assert controls(wire, node) == [Cancel(placed.job, 1)]


def reserve(item: Work, node: Node) -> None:
    from asgiref.sync import async_to_sync

    from gputorrent.redis import piped
    from jobs.board import Board

    async def ask():
        async with piped() as pipe:
            await Board(pipe).reserve(item, [node.pk], tenant="t", wait_seconds=600)

    async_to_sync(ask)()


# -- what a node does not have -------------------------------------------------------------------------


def test_running_work_that_its_node_does_not_have_is_given_to_another(wire, node):
    job, _ = started(wire, node)
    lists(wire, node, "other:1")
    before = queued(wire)
    assert sweep()["healed"] == 1
    row = Job.objects.get(pk=job.pk)
    assert (row.state, row.node_id) == (JobState.PENDING, None)
    assert row.attempts.get().outcome == "wire_lost"
    assert on_board("held") == []
    assert queued(wire) > before
    assert healed(wire) == {"lost_work": 1}


def test_so_is_work_that_the_board_has_lost_too(wire, node):
    job, item = started(wire, node)
    on_board("release", node.pk, "m", job.id, item.attempt)
    lists(wire, node)
    sweep()
    assert Job.objects.get().state == JobState.PENDING


def test_a_slot_of_work_that_never_began_comes_back(wire, node):
    job = submit()
    route(job)
    Job.objects.update(state=JobState.PENDING, created_at=ago(minutes=5))
    Node.objects.update(registered_at=ago(hours=1))
    age(wire, 300)
    lists(wire, node)
    done = sweep()
    assert (done["healed"], done["queued_again"]) == (1, 1)
    assert on_board("held") == []


@pytest.mark.parametrize(
    "why", ["listed", "young", "one beat", "restarted", "redis was emptied a moment ago", "no list"]
)
def test_work_that_only_looks_lost_is_left_alone(wire, node, why):
    job, item = started(wire, node)
    lists(wire, node)
    match why:
        case "listed":
            lists(wire, node, f"{job.id}:{item.attempt}")
        case "young":
            lists(wire, node, before=300)  # the earlier list is from before the placement
        case "one beat":
            one = Listing(now(wire), 1, frozenset())
            wire.hset(listing.KEY, node.pk, msgspec.msgpack.encode(one))
        case "restarted":
            lists(wire, node, incarnation=0)
        case "redis was emptied a moment ago":
            wire.set(view.ALIVE, int(now(wire)))
        case "no list":
            wire.delete(listing.KEY)
    sweep()
    assert Job.objects.get().state == JobState.RUNNING
    assert len(on_board("held")) == 1
    assert healed(wire) == {}


# -- what a node should not have -----------------------------------------------------------------------


def over(wire, node, **how) -> str:
    """A job that has ended on the node; its attempt's name."""
    job, item = started(wire, node)
    on_board("release", node.pk, "m", job.id, item.attempt)
    Job.objects.update(state=JobState.CANCELLED, **{"finished_at": ago(minutes=2), **how})
    return f"{job.id}:{item.attempt}"


def test_a_node_that_goes_on_with_what_is_over_is_told_to_stop_once(wire, node):
    name = over(wire, node)
    lists(wire, node, name)
    assert sweep()["healed"] == 1
    sweep()
    job, _, attempt = name.partition(":")
    assert controls(wire, node) == [Cancel(job, int(attempt))]
    assert healed(wire) == {"unwanted_work": 1}


def test_an_attempt_that_was_given_up_counts_as_over_though_its_job_goes_on(wire, node):
    job, item = started(wire, node)
    on_board("release", node.pk, "m", job.id, item.attempt)
    Attempt.objects.update(outcome="node_lost", finished_at=ago(minutes=2))
    Job.objects.update(state=JobState.PENDING, attempt_count=2)
    lists(wire, node, f"{job.id}:1")
    sweep()
    assert controls(wire, node) == [Cancel(job.id, 1)]


def test_work_without_a_row_is_stopped_when_it_is_old_enough_to_have_one(wire, node):
    young = new_job_id()
    old = f"{int((now(wire) - 300) * 1000):012x}{young[12:]}"
    lists(wire, node, f"{young}:1", f"{old}:1", "nonsense", before=20)
    sweep()
    assert controls(wire, node) == [Cancel(old, 1)]


@pytest.mark.parametrize("why", ["just ended", "runs", "has a slot", "node is silent", "one beat"])
def test_work_that_only_looks_unwanted_goes_on(wire, node, why):
    name = over(wire, node, **({"finished_at": timezone.now()} if why == "just ended" else {}))
    lists(wire, node, name)
    match why:
        case "runs":
            Job.objects.update(state=JobState.RUNNING, finished_at=None)
        case "has a slot":
            reserve(work(name.partition(":")[0], reply=WEB), node)
            wire.set(f"gt:web:{WEB}", "1")
        case "node is silent":
            at = now(wire) - 600
            old = Listing(at, 1, frozenset({name}), at + 300, frozenset({name}))
            wire.hset(listing.KEY, node.pk, msgspec.msgpack.encode(old))
        case "one beat":
            one = Listing(now(wire), 1, frozenset({name}))
            wire.hset(listing.KEY, node.pk, msgspec.msgpack.encode(one))
    sweep()
    assert controls(wire, node) == []
    assert healed(wire) == {}


# -- the board -----------------------------------------------------------------------------------------


def test_a_place_in_the_queue_of_a_job_that_is_over_is_given_up(wire, node):
    route(submit())
    job = submit()
    route(job)
    assert on_board("position", job.id) == 0
    Job.objects.filter(pk=job.pk).update(state=JobState.CANCELLED, finished_at=timezone.now())
    sweep()
    assert on_board("position", job.id) == 0  # whoever cancelled it may be about to
    Job.objects.filter(pk=job.pk).update(finished_at=ago(minutes=1))
    sweep()
    assert on_board("position", job.id) is None
    assert healed(wire) == {"waiter": 1}


def test_left_over_keys_and_wrong_sums_of_the_board_are_put_right(wire, node):
    route(submit())
    waiting = submit()
    route(waiting)
    right = {key: wire.dump(key) for key in wire.keys("gt:board:*")}
    wire.hincrby("gt:board:bytes", node.pk, 1000)
    wire.hset("gt:board:bytes", "gone", 5)
    wire.sadd("gt:board:places", "gone/m")
    wire.zadd("gt:board:queue:m", {"nobody": 1})
    wire.zadd("gt:board:waiting", {"nobody": 1})
    wire.hset("gt:board:turns:other", "", 1)
    assert tasks.tidy()["left_over"] == 6
    assert {key: wire.dump(key) for key in wire.keys("gt:board:*")} == right
    assert tasks.tidy()["left_over"] == 0
    assert healed(wire) == {"board": 6}


def test_lists_of_nodes_that_have_left_are_dropped(wire, node):
    lists(wire, node)
    wire.hset(listing.KEY, "gone", msgspec.msgpack.encode(Listing(1.0, 1, frozenset())))
    tasks.tidy()
    assert wire.hkeys(listing.KEY) == [node.pk.encode()]


# -- in all --------------------------------------------------------------------------------------------


def test_two_sweeps_at_once_heal_each_thing_once(wire, node):
    job, _ = started(wire, node)
    answered_by()
    sweep()
    long_absent(wire)
    lists(wire, node)
    begin = threading.Barrier(2)

    def one() -> None:
        try:
            begin.wait()
            sweep()
        finally:
            connections.close_all()

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert healed(wire)["record"] == 1
    row = Job.objects.get(pk=job.pk)
    assert (row.state, row.attempt_count, row.version) == (JobState.PENDING, 1, 4)
    assert on_board("held") == []
    assert retention.tidy() == 0
