"""The sweep finds asynchronous jobs that nothing moves any more, and leaves the others alone."""

from __future__ import annotations

import pytest
from django.utils import timezone

from jobs import tasks
from jobs.models import Attempt, Job, JobState
from nodes.models import Node
from nodes.registry import Refusal
from tests.jobs.deferred import a_node, age, ago, inbox, on_board, queued, report, route, submit, sweep
from tests.jobs.scripted import done
from worker_agent.contract import Work, lease_key

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(wire) -> Node:
    return a_node(wire)


def running_on(wire, node) -> tuple[Job, Work]:
    """A job that has been running for an hour."""
    job = submit()
    route(job)
    (item,) = inbox(wire, node)
    report(node, item)
    Job.objects.update(placed_at=ago(hours=1))
    age(wire)
    return job, item


def test_what_runs_on_a_live_node_is_left_alone(wire, node):
    running_on(wire, node)
    Node.objects.update(registered_at=ago(hours=2))
    assert not any(sweep().values())
    assert Job.objects.get().state == JobState.RUNNING
    assert len(on_board("held")) == 1


@pytest.mark.parametrize("fate", ["silent", "restarted", "deleted"])
def test_what_a_lost_node_was_at_is_rescued(wire, node, fate):
    _, item = running_on(wire, node)
    Node.objects.update(registered_at=ago(hours=2), last_beat_at=ago(hours=1))
    if fate == "silent":
        wire.delete(lease_key(node.pk))
    elif fate == "restarted":
        Node.objects.update(registered_at=timezone.now())
    else:
        node.delete()
    before = queued(wire)
    assert sweep()["rescued"] == 1
    row = Job.objects.get()
    assert (row.state, row.node_id) == (JobState.PENDING, None)
    assert row.attempts.get().outcome == "node_lost"
    assert queued(wire) > before
    assert on_board("held") == []
    if fate != "deleted":
        with pytest.raises(Refusal):
            report(node, item, done(item), attempt=2)


def test_a_node_that_comes_back_gets_what_it_was_at_again(wire, node, settings):
    settings.BREAKER_FAULTS = 0
    job, _ = running_on(wire, node)
    Node.objects.update(registered_at=ago(hours=2), last_beat_at=ago(hours=1))
    wire.delete(lease_key(node.pk))
    assert sweep()["rescued"] == 1
    assert [b.node for b in on_board("breakers")] == [node.pk]  # a loss is a fault of the node
    wire.set(lease_key(node.pk), "1")
    assert route(job) == f"placed on {node.pk}"
    assert [item.attempt for item in inbox(wire, node)] == [2]


def test_a_node_that_beats_over_http_alone_is_not_lost(wire, node):
    running_on(wire, node)
    wire.delete(lease_key(node.pk))
    Node.objects.update(registered_at=ago(hours=2), last_beat_at=timezone.now())
    assert sweep()["rescued"] == 0


def test_the_third_loss_is_the_last(wire, node):
    running_on(wire, node)
    Job.objects.update(attempt_count=3)
    Attempt.objects.update(number=3)
    node.delete()
    sweep()
    assert Job.objects.get().state == JobState.FAILED


def test_a_job_that_nothing_moves_is_queued_again(wire, node):
    submit()
    wire.flushdb()
    assert sweep()["queued_again"] == 0  # it is young
    Job.objects.update(created_at=ago(minutes=5))
    assert sweep()["queued_again"] == 1
    assert queued(wire) == 1


@pytest.mark.parametrize("where", ["waits on the board", "lies in an inbox"])
def test_a_job_that_the_board_has_is_not_queued_again(wire, node, where):
    if where == "waits on the board":
        route(submit())
    job = submit()
    route(job)
    Job.objects.update(created_at=ago(minutes=5), state=JobState.PENDING)
    before = queued(wire)
    assert sweep()["queued_again"] == 0
    assert queued(wire) == before


def test_a_slot_whose_node_died_before_it_began_comes_back_and_so_does_the_job(wire, node):
    route(submit())
    Job.objects.update(created_at=ago(minutes=5), state=JobState.PENDING)
    Node.objects.update(last_beat_at=ago(hours=1))
    wire.delete(lease_key(node.pk))
    age(wire)
    assert sweep()["queued_again"] == 1
    assert on_board("held") == []


def test_a_slot_for_an_attempt_that_is_over_comes_back(wire, node):
    route(submit())
    Job.objects.update(state=JobState.CANCELLED, finished_at=timezone.now())
    age(wire)
    sweep()
    assert len(on_board("held")) == 1  # the node may be about to say so itself
    Job.objects.update(finished_at=ago(minutes=5))
    assert sweep()["healed"] == 1
    assert on_board("held") == []


def test_a_job_whose_attempts_were_all_lost_on_the_way_fails(wire, node):
    job = submit()
    Job.objects.update(created_at=ago(minutes=5), attempt_count=3)
    attempt = Attempt.objects.create(job=job, number=3, lease="0" * 32)
    sweep()
    assert Job.objects.get().state == JobState.PENDING  # it may be on its way just now
    Attempt.objects.filter(pk=attempt.pk).update(claimed_at=ago(minutes=5))
    sweep()
    assert Job.objects.get().state == JobState.FAILED


def test_who_has_waited_for_days_expires_and_leaves_the_board(wire, node, settings):
    settings.RESULT_TTL_SECONDS = 1
    route(submit())
    job = submit()
    route(job)
    Job.objects.filter(pk=job.pk).update(created_at=ago(minutes=5))
    wire.zadd("gt:board:waiting", {job.id: 1})
    assert tasks.tidy()["expired"] == 1
    sweep()
    row = Job.objects.get(pk=job.pk)
    assert (row.state, row.error_code) == (JobState.EXPIRED, "expired")
    assert on_board("position", job.id) is None
    assert not wire.exists(f"gt:board:wait:{job.id}")


def test_old_results_are_dropped_and_then_old_jobs(wire, settings):
    settings.RESULT_TTL_SECONDS, settings.JOB_TTL_SECONDS = 60, 3600
    for minutes in (0, 5, 120):
        job = submit()
        Job.objects.filter(pk=job.pk).update(
            state=JobState.COMPLETED, finished_at=ago(minutes=minutes), result=b"{}"
        )
        Attempt.objects.create(job=job, number=1, lease="0" * 32)
    tasks.tidy()
    assert [row.result is None for row in Job.objects.order_by("finished_at")] == [True, False]
    assert Attempt.objects.count() == 2


def test_an_emptied_redis_makes_nobody_lose_work(wire, node):
    running_on(wire, node)
    Node.objects.update(last_beat_at=ago(hours=1))
    wire.flushall()
    assert sweep()["rescued"] == 0
