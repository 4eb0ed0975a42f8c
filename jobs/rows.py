"""Rows of the ledger as the recorder writes them: the columns that a web process knows, without the weight
of Django's models, of which a busy process would make a thousand a second. Named as the models' columns
are; times in UTC.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from jobs.models import JobState

if TYPE_CHECKING:
    from jobs.interactive import InteractiveJob


class JobRow(Struct):
    """What `jobs.models.Job` has of a job whose caller waits; the other columns keep their defaults."""

    id: str
    state: str
    version: int
    path: str
    model: str
    stream: bool
    priority: int
    key_id: int | None
    node_id: str | None
    web: str
    attempt_count: int
    why: str
    created_at: datetime.datetime
    placed_at: datetime.datetime | None
    first_token_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    prompt_tokens: int
    completion_tokens: int
    http_status: int | None
    error_code: str
    error_message: str


class AttemptRow(Struct):
    """`jobs.models.Attempt`."""

    job_id: str
    number: int
    node_id: str | None
    lease: str
    outcome: str
    reason: str
    claimed_at: datetime.datetime
    placed_at: datetime.datetime | None
    finished_at: datetime.datetime | None


def of(job: InteractiveJob) -> tuple[JobRow, list[AttemptRow]]:
    """The rows of a job and its attempts as they should now be in the ledger, but for attempts whose row is
    there as it stays."""
    # In the order of their fields: by name, msgspec takes six times as long to make a row of so many.
    request, node, placed_at, attempts = job.request, None, None, []
    for t in job.tries:
        at = _at(t.placed_at, _UTC) if t.placed_at else None
        if t.node:
            node, placed_at = t.node, at
        if t.recorded:
            continue
        attempts.append(
            AttemptRow(
                job.id,
                t.number,
                t.node or None,
                t.lease.hex(),
                t.outcome,
                _storable(t.reason) if t.reason else "",
                _at(t.claimed_at, _UTC),
                at,
                _at(t.finished_at, _UTC) if t.finished_at else None,
            )
        )
    row = JobRow(
        job.id,
        _NAMES[job.state],
        job.version,
        request.path,
        request.model,
        request.stream,
        request.priority,
        request.key,
        node,
        job.web,
        job.attempt,
        _storable(job.why[:300]),
        _at(job.created_at, _UTC),
        placed_at,
        _at(job.first_byte_at, _UTC) if job.first_byte_at else None,
        _at(job.finished_at, _UTC) if job.finished_at else None,
        job.prompt_tokens,
        job.completion_tokens,
        job.http_status,
        job.error_code,
        _storable(job.error_message[:500]) if job.error_message else "",
    )
    return row, attempts


_at: Final = datetime.datetime.fromtimestamp
_UTC: Final = datetime.UTC
_NAMES: Final = {state: state.value for state in JobState}  # `value` asks a descriptor each time


def _storable(text: str) -> str:
    """Words that may be a node's: PostgreSQL takes every character but NUL, and would refuse the batch."""
    return text.replace("\0", "\ufffd")
