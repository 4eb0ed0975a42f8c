"""What a job adds to the metrics when it is over: one for each row of the ledger, and one for each refusal.

Jobs of a web process are counted in its memory. Those that end in the ledger (asynchronous ones, and what the
sweep ends) are counted by whoever ended them, after the commit, straight into Redis.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import redis
from django.db import DatabaseError, InterfaceError, transaction
from msgspec import Struct

from gputorrent.redis import blocking
from jobs import metrics
from jobs.metrics import UNKNOWN, Counts, Series, Times
from jobs.models import TERMINAL, Batch, Job, JobState

if TYPE_CHECKING:
    from jobs.interactive import InteractiveJob
    from nodes.view import Snapshot

log = logging.getLogger(__name__)

WHOLE, STREAM, ASYNCHRONOUS = "whole", "stream", "asynchronous"
_PAUSE_SECONDS: Final = 5.0
_not_before = 0.0  # monotonic; after a failure, so that a sweep over many jobs does not wait for each


def job_over(counts: Counts, job: InteractiveJob, snapshot: Snapshot) -> None:
    """Count a job that this process answered, once nothing more is awaited of it."""
    request, nodes, placed, attempts = job.request, snapshot.nodes, 0.0, []
    for t in job.tries:
        if not placed:
            placed = t.placed_at
        if t.outcome:
            view = nodes.get(t.node)
            attempts.append((view.name if view else t.node, t.outcome))
    # Whatever was claimed was offered by a node; other names are the caller's invention.
    known, created = job.attempt or request.model in snapshot.by_model, job.created_at
    over = _Over(
        request.path,
        request.model if known else UNKNOWN,
        STREAM if request.stream else WHOLE,
        job.state,
        job.error_code,
        job.http_status or 200,
        job.prompt_tokens,
        job.completion_tokens,
        attempts,
        placed - created if placed else None,
        job.first_byte_at - created if job.first_byte_at else None,
        job.finished_at - created,
    )
    _take(counts, over, has_row=bool(job.attempt))


def refused(counts: Counts, path: str, code: str | None) -> None:
    """Count a request that became no job: what it asked for is not known, or not to be believed."""
    counts.add(metrics.REQUESTS, path, UNKNOWN, UNKNOWN, code or "invalid_request")
    counts.add(metrics.ERRORS, code or "invalid_request")


def row_moved(job: Job) -> None:
    """A job has moved in the ledger: if that ended it, it is counted once the transaction is committed."""
    if job.state in TERMINAL:
        transaction.on_commit(lambda: _count_row(job.pk))


def lines_over(batch: Batch, outcomes: Mapping[str, int]) -> None:
    """A step of a batch, whose version is its number, has ended so many lines in these ways: counted once it
    is committed."""
    counts = Counts()
    for outcome, many in outcomes.items():
        if many:
            counts.add(metrics.BATCH_LINES, outcome, by=many)
    if counts.pending:
        name, version = batch.id, batch.version
        transaction.on_commit(lambda: _send(name, version, lambda: counts))


def _count_row(job_id: str) -> None:
    def of_job() -> Counts:
        counts = Counts()
        _take(counts, _of_row(Job.objects.defer("request", "result").get(pk=job_id)))
        return counts

    # A job ends once, so its name makes this the first batch of its own source: repeats change nothing.
    _send(f"job:{job_id}", 1, of_job)


def _send(source: str, number: int, counts: Callable[[], Counts]) -> None:
    """A lost count is logged, never an error: the ledger has the truth."""
    global _not_before
    if time.monotonic() < _not_before:
        return
    try:
        send = blocking().register_script(metrics.LUA)
        send(args=[source, number, *metrics.arguments(counts().pending)])
    except (redis.RedisError, DatabaseError, InterfaceError, Job.DoesNotExist) as e:
        _not_before = time.monotonic() + _PAUSE_SECONDS
        log.warning("not counted source=%s error=%s", source, type(e).__name__)


def _of_row(job: Job) -> _Over:
    def after(moment: datetime.datetime | None) -> float | None:
        return (moment - job.created_at).total_seconds() if moment else None

    return _Over(
        job.path,
        job.model,
        ASYNCHRONOUS if job.asynchronous else STREAM if job.stream else WHOLE,
        JobState(job.state),
        job.error_code,
        job.http_status or 200,
        job.prompt_tokens,
        job.completion_tokens,
        [(name or "", outcome or job.state) for name, outcome in _attempts(job)],
        after(job.placed_at),  # the latest place; the first was given up, and its time with it
        after(job.first_token_at),
        after(job.finished_at),
    )


def _attempts(job: Job) -> list[tuple[str | None, str]]:
    return list(job.attempts.values_list("node__name", "outcome"))


class _Over(Struct):
    """What there is to count of a job that is over. Times in seconds after it was made."""

    path: str
    model: str
    mode: str
    state: JobState
    code: str
    http_status: int
    prompt_tokens: int
    completion_tokens: int
    attempts: list[tuple[str, str]]  # node and outcome
    placed: float | None
    first_token: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class _Series:
    """What jobs of one kind are counted in. Made once for each kind: a request adds to eleven of these."""

    request: Series
    error: Series
    job: Series
    prompt: Series
    completion: Series
    wait: Times
    first_token: Times
    total: Times


@lru_cache(maxsize=1024)
def _series(path: str, model: str, mode: str, state: JobState, code: str) -> _Series:
    outcome = code or ("completed" if state == JobState.COMPLETED else state.value)
    return _Series(
        (metrics.REQUESTS.name, path, model, mode, outcome),
        (metrics.ERRORS.name, outcome),
        (metrics.JOBS.name, model, state.value),
        (metrics.PROMPT_TOKENS.name, model),
        (metrics.COMPLETION_TOKENS.name, model),
        metrics.times(metrics.QUEUE_WAIT, model, mode),
        metrics.times(metrics.FIRST_TOKEN, model, mode),
        metrics.times(metrics.TOTAL, model, mode),
    )


def _take(counts: Counts, job: _Over, *, has_row: bool = True) -> None:
    of, pending, state = (
        _series(job.path, job.model, job.mode, job.state, job.code),
        counts.pending,
        job.state,
    )
    pending[of.request] += 1
    if state != JobState.COMPLETED:
        pending[of.error] += 1
    if has_row:
        pending[of.job] += 1
    if job.prompt_tokens:
        pending[of.prompt] += job.prompt_tokens
    if job.completion_tokens:
        pending[of.completion] += job.completion_tokens
    for node, how in job.attempts:
        pending[metrics.ATTEMPTS.name, node, how] += 1
    if job.placed is not None:
        counts.observe(of.wait, job.placed)
    if job.first_token is not None and job.http_status < 400:
        counts.observe(of.first_token, job.first_token)
    if job.finished is not None and state == JobState.COMPLETED:
        counts.observe(of.total, job.finished)
