"""What a job adds to the metrics when it is over: one for each row of the ledger, and one for each refusal.

Jobs of a web process are counted in its memory. Those that end in the ledger (asynchronous ones, and what the
sweep ends) are counted by whoever ended them, after the commit, straight into Redis.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import redis
from django.db import DatabaseError, InterfaceError, transaction

from gputorrent.redis import blocking
from jobs import metrics
from jobs.metrics import UNKNOWN, Counts, Metrics
from jobs.models import TERMINAL, Job, JobState

if TYPE_CHECKING:
    from jobs.interactive import InteractiveJob
    from nodes.view import Snapshot

log = logging.getLogger(__name__)

WHOLE, STREAM, ASYNCHRONOUS = "whole", "stream", "asynchronous"
_PAUSE_SECONDS: Final = 5.0
_not_before = 0.0  # monotonic; after a failure, so that a sweep over many jobs does not wait for each


def job_over(counts: Metrics, job: InteractiveJob, snapshot: Snapshot) -> None:
    """Count a job that this process answered, once nothing more is awaited of it."""
    request, mode = job.request, STREAM if job.request.stream else WHOLE
    # Whatever was claimed was offered by a node; other names are the caller's invention.
    model = request.model if job.attempt or request.model in snapshot.by_model else UNKNOWN
    _count(counts, request.path, model, mode, job.state, job.error_code)
    if job.attempt:
        counts.add(metrics.JOBS, model, job.state)
    _tokens(counts, model, job.prompt_tokens, job.completion_tokens)
    for t in job.tries:
        if t.outcome:
            view = snapshot.nodes.get(t.node)
            counts.add(metrics.ATTEMPTS, view.name if view else t.node, t.outcome)
    if placed := next((t.placed_at for t in job.tries if t.placed_at), 0.0):
        counts.observe(metrics.QUEUE_WAIT, placed - job.created_at, model, mode)
    if job.first_byte_at and (job.http_status or 200) < 400:
        counts.observe(metrics.FIRST_TOKEN, job.first_byte_at - job.created_at, model, mode)
    if job.state == JobState.COMPLETED:
        counts.observe(metrics.TOTAL, job.finished_at - job.created_at, model, mode)


def refused(counts: Metrics, path: str, code: str | None) -> None:
    """Count a request that became no job: what it asked for is not known, or not to be believed."""
    counts.add(metrics.REQUESTS, path, UNKNOWN, UNKNOWN, code or "invalid_request")
    counts.add(metrics.ERRORS, code or "invalid_request")


def row_moved(job: Job) -> None:
    """A job has moved in the ledger: if that ended it, it is counted once the transaction is committed."""
    if job.state in TERMINAL:
        transaction.on_commit(lambda: _count_row(job.pk))


def _count_row(job_id: str) -> None:
    """A lost count is logged, never an error: the ledger has the truth."""
    global _not_before
    if time.monotonic() < _not_before:
        return
    try:
        job = Job.objects.defer("request", "result").get(pk=job_id)
        counts = Counts()
        _take_row(counts, job)
        send = blocking().register_script(metrics.LUA)
        # A job ends once, so its name makes this the first batch of its own source: repeats change nothing.
        send(args=[f"job:{job_id}", 1, *metrics.arguments(counts.pending)])
    except (redis.RedisError, DatabaseError, InterfaceError, Job.DoesNotExist) as e:
        _not_before = time.monotonic() + _PAUSE_SECONDS
        log.warning("not counted job=%s error=%s", job_id, type(e).__name__)


def _take_row(counts: Counts, job: Job) -> None:
    mode = ASYNCHRONOUS if job.asynchronous else STREAM if job.stream else WHOLE
    _count(counts, job.path, job.model, mode, job.state, job.error_code)
    counts.add(metrics.JOBS, job.model, job.state)
    _tokens(counts, job.model, job.prompt_tokens, job.completion_tokens)
    for name, outcome in job.attempts.values_list("node__name", "outcome"):
        counts.add(metrics.ATTEMPTS, name or "", outcome or job.state)
    if job.placed_at:
        # The latest place; the first was given up, and its time with it.
        counts.observe(metrics.QUEUE_WAIT, (job.placed_at - job.created_at).total_seconds(), job.model, mode)
    if job.first_token_at and (job.http_status or 200) < 400:
        waited = (job.first_token_at - job.created_at).total_seconds()
        counts.observe(metrics.FIRST_TOKEN, waited, job.model, mode)
    if job.finished_at and job.state == JobState.COMPLETED:
        took = (job.finished_at - job.created_at).total_seconds()
        counts.observe(metrics.TOTAL, took, job.model, mode)


def _count(counts: Counts, path: str, model: str, mode: str, state: str, code: str) -> None:
    outcome = code or ("completed" if state == JobState.COMPLETED else str(state))
    counts.add(metrics.REQUESTS, path, model, mode, outcome)
    if state != JobState.COMPLETED:
        counts.add(metrics.ERRORS, outcome)


def _tokens(counts: Counts, model: str, prompt: int, completion: int) -> None:
    if prompt:
        counts.add(metrics.PROMPT_TOKENS, model, by=prompt)
    if completion:
        counts.add(metrics.COMPLETION_TOKENS, model, by=completion)
