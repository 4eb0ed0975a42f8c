"""What a job adds to the metrics, to the last series."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import counting
from jobs.interactive import InteractiveJob, new_job_id
from jobs.metrics import Counts
from jobs.models import JobState
from nodes.view import NodeView, Snapshot
from tests.jobs.desk import request

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def snapshot() -> Snapshot:
    made = Snapshot()
    made.nodes["n1"] = NodeView("n1", "one", "online", 1, [], 0, 0, 0.0)
    return made


def over(state: JobState, *outcomes: str, code: str = "", **asked) -> InteractiveJob:
    """Placed 0.002 s after it was made, begun to be answered after 0.2 s, ended after 2 s; tried once for
    each outcome, on node n1, then n2."""
    job = InteractiveJob(new_job_id(), request(**asked), 100, created_at=1000.0)
    for n, outcome in enumerate(outcomes, 1):
        job.claim()
        job.current.node, job.current.outcome, job.current.placed_at = f"n{n}", outcome, 1000.002 + n - 1
    job.state, job.error_code, job.finished_at = state, code, 1002.0
    job.first_byte_at = 1000.2 if outcomes else 0.0
    return job


def counted(snapshot: Snapshot, *jobs: InteractiveJob) -> dict[tuple[str, ...], int]:
    counts = Counts()
    for job in jobs:
        counting.job_over(counts, job, snapshot)
    return dict(counts.pending)


def waited(model: str, mode: str) -> dict[tuple[str, ...], int]:
    return {
        ("queue_wait_seconds", model, mode, "0.005"): 1,
        ("queue_wait_seconds", model, mode, "sum"): 2000,
        ("time_to_first_token_seconds", model, mode, "0.25"): 1,
        ("time_to_first_token_seconds", model, mode, "sum"): 200_000,
    }


def took(model: str, mode: str) -> dict[tuple[str, ...], int]:
    return {
        ("request_duration_seconds", model, mode, "2.5"): 1,
        ("request_duration_seconds", model, mode, "sum"): 2_000_000,
    }


def test_one_that_was_answered(snapshot):
    job = over(JobState.COMPLETED, "done")
    job.prompt_tokens, job.completion_tokens = 3, 7
    assert counted(snapshot, job) == {
        ("requests", CHAT, "m", "stream", "completed"): 1,
        ("jobs", "m", "completed"): 1,
        ("prompt_tokens", "m"): 3,
        ("completion_tokens", "m"): 7,
        ("attempts", "one", "done"): 1,
        **waited("m", "stream"),
        **took("m", "stream"),
    }


def test_one_that_failed_on_two_nodes_of_which_one_is_known_no_more(snapshot):
    job = over(JobState.FAILED, "node_lost", "engine_died", code="upstream_failed")
    assert counted(snapshot, job) == {
        ("requests", CHAT, "m", "stream", "upstream_failed"): 1,
        ("errors", "upstream_failed"): 1,
        ("jobs", "m", "failed"): 1,
        ("attempts", "one", "node_lost"): 1,
        ("attempts", "n2", "engine_died"): 1,
        **waited("m", "stream"),  # to the first place
    }


def test_a_refusal_of_the_engine_has_no_time_to_a_token(snapshot):
    job = over(JobState.FAILED, "rejected", code="rejected_by_engine")
    job.http_status = 400
    first_token = {s for s in waited("m", "stream") if s[0].startswith("time_to")}
    assert first_token
    assert not first_token & counted(snapshot, job).keys()


def test_one_that_was_never_claimed_is_no_job_and_names_no_model(snapshot):
    job = over(JobState.CANCELLED, code="client_closed", model="invented")
    assert counted(snapshot, job) == {
        ("requests", CHAT, "unknown", "stream", "client_closed"): 1,
        ("errors", "client_closed"): 1,
    }


def test_those_that_differ_in_one_thing_are_counted_apart(snapshot):
    usual: dict[str, Any] = {"stream": True, "path": CHAT, "model": "m"}
    others: list[dict[str, Any]] = [{}, {"stream": False}, {"path": TEXT}, {"model": "n"}]
    jobs = [over(JobState.COMPLETED, "done", **{**usual, **other}) for other in others]
    jobs += [over(state, "done", code=code) for state in (JobState.FAILED, JobState.EXPIRED) for code in "ab"]
    found = counted(snapshot, *jobs, *jobs)
    requests = {series[1:]: n for series, n in found.items() if series[0] == "requests"}
    assert requests == dict.fromkeys(
        [
            (CHAT, "m", "stream", "completed"),
            (CHAT, "m", "whole", "completed"),
            (TEXT, "m", "stream", "completed"),
            (CHAT, "n", "stream", "completed"),
        ],
        2,
    ) | {(CHAT, "m", "stream", "a"): 4, (CHAT, "m", "stream", "b"): 4}
    ended = {series[1:]: n for series, n in found.items() if series[0] == "jobs"}
    assert ended == {
        ("m", "completed"): 6,
        ("n", "completed"): 2,
        ("m", "failed"): 4,
        ("m", "expired"): 4,
    }
