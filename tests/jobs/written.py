"""Rows as a recorder writes them, with what a test does not care about."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from jobs.interactive import new_job_id
from jobs.models import JobState
from jobs.rows import AttemptRow, JobRow


def job_row(**changes: Any) -> JobRow:
    """Of a job that waits, unless told otherwise."""
    fields: dict[str, Any] = {
        **dict.fromkeys(("key_id", "node_id", "placed_at", "first_token_at", "finished_at", "http_status")),
        **dict.fromkeys(("web", "why", "error_code", "error_message"), ""),
        **dict.fromkeys(("priority", "attempt_count", "prompt_tokens", "completion_tokens"), 0),
        "id": new_job_id(),
        "state": JobState.PENDING.value,
        "version": 1,
        "path": "/v1/completions",
        "model": "m",
        "stream": False,
        "created_at": timezone.now(),
    }
    return JobRow(**{**fields, **changes})


def attempt_row(job: str, number: int = 1, **changes: Any) -> AttemptRow:
    """Of an open attempt, unless told otherwise."""
    fields: dict[str, Any] = {
        **dict.fromkeys(("node_id", "placed_at", "finished_at")),
        "lease": str(number) * 32,
        "outcome": "",
        "reason": "",
        "claimed_at": timezone.now(),
    }
    return AttemptRow(job_id=job, number=number, **{**fields, **changes})
