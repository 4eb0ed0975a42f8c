"""Rows have in each column what belongs there."""

from __future__ import annotations

import datetime

from msgspec.structs import asdict

from jobs.interactive import InteractiveJob, Request
from jobs.models import JobState


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def test_every_column_has_what_the_job_knows():
    request = Request("/v1/path", "model", b"{}", stream=True, key=41, priority=42)
    job = InteractiveJob("id", request, 100, "web", version=43, created_at=1000.000001)
    job.claim()
    first = job.current
    first.node, first.claimed_at, first.placed_at, first.finished_at = "n1", 1001.25, 1002.5, 1003.75
    first.outcome, first.reason = "engine_died", "reason"
    job.claim()
    second = job.current
    second.node, second.claimed_at, second.placed_at = "n2", 1004.0, 1005.999999
    job.claim()
    job.current.claimed_at = 1006.5
    job.state, job.why = JobState.EXPIRED, "why"
    job.first_byte_at, job.finished_at = 1007.5, 1008.5
    job.prompt_tokens, job.completion_tokens, job.http_status = 44, 45, 46
    job.error_code, job.error_message = "code", "message"
    row, attempts = job.record()
    assert asdict(row) == {
        "id": "id",
        "state": "expired",
        "version": 43,
        "path": "/v1/path",
        "model": "model",
        "stream": True,
        "priority": 42,
        "key_id": 41,
        "node_id": "n2",
        "web": "web",
        "attempt_count": 3,
        "why": "why",
        "created_at": at(1000.000001),
        "placed_at": at(1005.999999),
        "first_token_at": at(1007.5),
        "finished_at": at(1008.5),
        "prompt_tokens": 44,
        "completion_tokens": 45,
        "http_status": 46,
        "error_code": "code",
        "error_message": "message",
    }
    assert [asdict(a) for a in attempts] == [
        {
            "job_id": "id",
            "number": 1,
            "node_id": "n1",
            "lease": first.lease.hex(),
            "outcome": "engine_died",
            "reason": "reason",
            "claimed_at": at(1001.25),
            "placed_at": at(1002.5),
            "finished_at": at(1003.75),
        },
        {
            "job_id": "id",
            "number": 2,
            "node_id": "n2",
            "lease": second.lease.hex(),
            "outcome": "",
            "reason": "",
            "claimed_at": at(1004.0),
            "placed_at": at(1005.999999),
            "finished_at": None,
        },
        {
            "job_id": "id",
            "number": 3,
            "node_id": None,
            "lease": job.lease.hex(),
            "outcome": "",
            "reason": "",
            "claimed_at": at(1006.5),
            "placed_at": None,
            "finished_at": None,
        },
    ]
