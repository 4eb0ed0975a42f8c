"""What django-rq runs. Each task is safe to run twice, and takes ids only.

Queue `routing`: asynchronous jobs. Queue `maintenance`: sweeps. Both carry JSON, and only `jobworker` should
serve them: whoever can write into a queue can run any importable function.
"""

from __future__ import annotations

import datetime
import logging

import django_rq
from asgiref.sync import async_to_sync
from rq import Retry
from rq.job import JobStatus

from jobs import asynchronous
from nodes import registry, samples

log = logging.getLogger(__name__)

_RETRY_SECONDS = [1, 2, 4, 8, 15, 30]
_UNDER_WAY = {JobStatus.QUEUED, JobStatus.SCHEDULED, JobStatus.STARTED, JobStatus.DEFERRED}


def enqueue_routing(job_id: str, attempts: int, delay_seconds: float = 0.0) -> None:
    """Queue a job, which has had so many attempts, for the next. Raises `redis.RedisError`.

    One task for each attempt: asked for again while it is under way, nothing happens.
    """
    queue = django_rq.get_queue("routing")
    name = f"route-{job_id}-{attempts}"
    known = queue.fetch_job(name)
    if known is not None and known.get_status() in _UNDER_WAY:
        return
    # Retries are for what breaks (Redis or the database is away), with growing pauses.
    how = {"job_id": name, "retry": Retry(max=len(_RETRY_SECONDS), interval=_RETRY_SECONDS), "result_ttl": 60}
    if delay_seconds:
        queue.enqueue_in(datetime.timedelta(seconds=delay_seconds), route, job_id, **how)
    else:
        queue.enqueue(route, job_id, **how)


def route(job_id: str) -> str:
    """Place one asynchronous job. What cannot be placed now is queued again by the sweep."""
    try:
        return async_to_sync(asynchronous.route)(job_id)
    except asynchronous.TryAgainLater as e:
        return f"later: {e}"


def enqueue_sweep() -> None:
    """Queue a sweep, unless one waits already. Raises `redis.RedisError`."""
    queue = django_rq.get_queue("maintenance")
    if queue.count < 5:
        queue.enqueue(sweep, result_ttl=60, failure_ttl=3600)


def sweep() -> dict[str, int]:
    """Nodes that fell silent, asynchronous jobs that nothing moves."""
    found = {
        "unhealthy": registry.mark_unhealthy(),
    }
    samples.thin()
    found.update(async_to_sync(asynchronous.sweep)())
    if any(found.values()):
        log.info("sweep %s", " ".join(f"{k}={v}" for k, v in found.items()))
    return found
