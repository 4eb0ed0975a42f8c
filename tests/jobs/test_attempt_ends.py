"""Every attempt at an asynchronous job has an end, whoever lost it; a live one is not seen as lost."""

from __future__ import annotations

import threading
import time

import pytest
from django.conf import settings
from django.db import connection, transaction

from jobs.asynchronous import TryAgainLater, queue_again
from jobs.lifecycle import Move, move
from jobs.models import Attempt, Job, JobState
from nodes.models import Node
from tests.jobs.deferred import a_node, ago, failed, inbox, report, route, submit
from tests.jobs.scripted import done
from worker_agent.contract import lease_key

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(wire) -> Node:
    return a_node(wire)


def outcomes(job: Job) -> list[str]:
    return list(job.attempts.order_by("number").values_list("outcome", flat=True))


def lose_the_board(wire) -> None:
    for key in wire.keys("gt:board:*"):
        wire.delete(key)


def test_an_attempt_that_the_board_lost_ends_when_the_next_is_claimed(wire, node):
    route(submit())  # takes the only slot
    job = submit()
    assert route(job) == "waiting behind 0"
    lose_the_board(wire)
    inbox(wire, node)
    assert route(job).startswith("placed")
    assert outcomes(job) == ["wire_lost", ""]
    assert job.attempts.get(number=1).finished_at
    (item,) = inbox(wire, node)
    report(node, item, done(item))
    assert outcomes(job) == ["wire_lost", "done"]


@pytest.mark.parametrize("how", [Move.FAIL, Move.CANCEL, Move.EXPIRE])
def test_an_attempt_that_nobody_hears_of_ends_with_its_job(wire, node, how):
    route(submit())
    job = submit()
    route(job)
    job.refresh_from_db()
    assert move(job, how)
    assert outcomes(job) == [job.state]
    assert job.attempts.get().finished_at


def test_a_node_that_is_away_for_a_moment_is_waited_for(wire, node):
    other = a_node(wire, "other")
    job = submit()
    route(job)
    ran_on, away = (node, other) if Attempt.objects.get().node == node else (other, node)
    (item,) = inbox(wire, ran_on)
    report(ran_on, item, failed(item))
    wire.delete(lease_key(away.pk))
    with pytest.raises(TryAgainLater):
        route(job)
    assert Job.objects.get().state == JobState.PENDING
    wire.set(lease_key(away.pk), "1")
    assert route(job) == f"placed on {away.pk}"


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_a_start_that_is_told_while_the_router_notes_it_is_live(wire, node):
    first = submit()
    route(first)
    (blocking,) = inbox(wire, node)
    job = submit()
    route(job)
    report(node, blocking, done(blocking))  # the board places the next, which the ledger does not know yet
    (item,) = inbox(wire, node)
    refused: list[Exception] = []

    def tell() -> None:
        try:
            report(node, item)
        except Exception as e:
            refused.append(e)
        finally:
            connection.close()

    node_tells = threading.Thread(target=tell)
    with transaction.atomic():
        job.refresh_from_db()
        Attempt.objects.filter(job=job).update(node=node, placed_at=ago(seconds=1))
        assert move(job, Move.PLACE, node_id=node.pk, placed_at=ago(seconds=1))
        node_tells.start()
        deadline = time.monotonic() + 10
        while not _somebody_waits():
            assert time.monotonic() < deadline, "the report did not reach the row"
            time.sleep(0.02)
    node_tells.join()
    assert not refused
    assert Job.objects.get(pk=job.pk).state == JobState.RUNNING


def test_a_job_that_begins_while_the_sweep_looks_is_not_taken_for_lost(wire, node):
    job = submit()
    route(job)
    (item,) = inbox(wire, node)
    Job.objects.update(attempt_count=settings.ATTEMPTS)
    Attempt.objects.update(number=settings.ATTEMPTS, claimed_at=ago(hours=1))
    as_the_sweep_read_it = Job.objects.get()
    as_the_sweep_read_it.state, as_the_sweep_read_it.version = (
        JobState.PENDING,
        as_the_sweep_read_it.version - 1,
    )
    assert queue_again([as_the_sweep_read_it], ago(minutes=1)) == 0
    assert Job.objects.get().state == JobState.RUNNING
    report(node, item, done(item), attempt=settings.ATTEMPTS)
    assert Job.objects.get().state == JobState.COMPLETED


def test_what_waits_in_the_routing_queue_is_not_queued_again(wire, node):
    jobs = [submit() for _ in range(3)]
    assert queue_again(jobs, ago(minutes=1)) == 0
    wire.delete("rq:queue:routing")
    assert queue_again(jobs, ago(minutes=1)) == 3
    assert wire.llen("rq:queue:routing") == 3


def _somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(cursor.fetchone()[0])
