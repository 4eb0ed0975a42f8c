"""A job's timeline: parts that follow each other and add up, moments in order."""

from __future__ import annotations

import datetime

import pytest

from jobs import timeline
from jobs.models import Attempt, Job, JobState
from nodes.models import Node

START = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def attempt(number: int, node: str = "lab", outcome: str = "", **times: float) -> Attempt:
    moments = {f"{name}_at": at(seconds) for name, seconds in times.items()}
    return Attempt(number=number, node=Node(name=node), outcome=outcome, **moments)


def kinds(lane) -> list[tuple[str, float, float]]:
    return [(p.kind, p.left, p.width) for p in lane.parts]


def test_a_job_that_went_well():
    job = Job(created_at=START, first_token_at=at(4), finished_at=at(10), state=JobState.COMPLETED, model="m")
    shown = timeline.of(job, [attempt(1, outcome="done", placed=2, finished=10)], at(99))
    (lane,) = shown.lanes
    assert shown.seconds == 10
    assert kinds(lane) == [("waiting", 0, 20), ("until the first token", 20, 20), ("answering", 40, 60)]
    assert [(m.after, m.what) for m in shown.moments] == [
        (0, "accepted"),
        (2, "attempt 1 placed on lab"),
        (4, "first token"),
        (10, "completed"),
    ]


def test_an_attempt_that_was_lost_and_one_under_way():
    job = Job(created_at=START, state=JobState.RUNNING, model="m")
    first = attempt(1, outcome="node_lost", placed=0, finished=4)
    shown = timeline.of(job, [first, attempt(2, "other", placed=6)], at(8))
    assert kinds(shown.lanes[0]) == [("lost", 0, 50)]
    assert kinds(shown.lanes[1]) == [("waiting", 50, 25), ("until the first token", 75, 25)]
    assert (shown.lanes[1].node, shown.lanes[1].outcome) == ("other", "under way")
    assert "attempt 1 ended: node_lost" in [m.what for m in shown.moments]


def test_a_job_that_nobody_took():
    job = Job(created_at=START, finished_at=at(60), state=JobState.EXPIRED, error_code="queue_timeout")
    shown = timeline.of(job, [], at(61))
    assert kinds(shown.lanes[0]) == [("waiting", 0, 100)]
    assert shown.moments[-1].what == "expired (queue_timeout)"


@pytest.mark.parametrize("wrong", [-5.0, 0.0, 1e-9])
def test_clocks_that_disagree_break_nothing(wrong):
    job = Job(created_at=START, first_token_at=at(wrong), finished_at=at(wrong), state=JobState.FAILED)
    shown = timeline.of(job, [attempt(1, outcome="done", placed=wrong, finished=wrong)], at(wrong))
    for lane in shown.lanes:
        assert all(0 <= p.left <= 100 and 0 <= p.width <= 100 for p in lane.parts)
