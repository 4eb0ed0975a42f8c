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

from jobs import asynchronous
from nodes import registry, samples

log = logging.getLogger(__name__)

_RETRY_SECONDS = [1, 2, 4, 8, 15, 30, 60, 60, 60, 60]


def enqueue_routing(job_id: str, delay_seconds: float = 0.0) -> None:
    """Queue a job for routing. Raises `redis.RedisError`."""
    queue = django_rq.get_queue("routing")
    retry = Retry(max=len(_RETRY_SECONDS), interval=_RETRY_SECONDS)
    if delay_seconds:
        queue.enqueue_in(datetime.timedelta(seconds=delay_seconds), route, job_id, retry=retry, result_ttl=60)
    else:
        queue.enqueue(route, job_id, retry=retry, result_ttl=60)


def route(job_id: str) -> str:
    """Place one asynchronous job. Raises to be run again later."""
    return async_to_sync(asynchronous.route)(job_id)


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
