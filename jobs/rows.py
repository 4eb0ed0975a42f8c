"""Rows of the ledger as the recorder writes them: the columns that a web process knows, without the weight
of Django's models, of which a busy process would make a thousand a second. Named as the models' columns are.
"""

from __future__ import annotations

import datetime

from msgspec import Struct


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
