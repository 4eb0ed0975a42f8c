"""What django-rq runs. Each task is safe to run twice, and takes ids only.

Queue `routing`: asynchronous jobs. Queue `maintenance`: the sweep, and what has more time. Both carry JSON,
and only `jobworker` should serve them: whoever can write into a queue can run any importable function.

RQ's own repair takes minutes: a task that a killed worker had begun counts as started for three of them, and
one that it had taken off the queue a moment before counts as queued for ever. `_under_way` looks at what is
really there, so whoever asks again (the sweep does) queues such a task anew. A doubled start is harmless:
what a task does is a conditional write on the ledger.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from typing import Any

import django_rq
from asgiref.sync import async_to_sync
from django.conf import settings
from rq import Queue, Retry
from rq.job import Job as Task
from rq.job import JobStatus

from gputorrent.redis import blocking
from jobs import asynchronous, files, lull, pruning, retention, sweeping
from jobs import batches as batch_turns
from nodes import registry, samples
from nodes.backoffice import logins

log = logging.getLogger(__name__)

QUEUES = ("maintenance", "routing")
"""Served in turn: neither does a flood of jobs delay the sweep for long, nor a slow sweep the jobs."""
_RETRY_SECONDS = [1, 2, 4, 8, 15, 30]
_TIDY_EVERY = 12  # sweeps
_BATCHES_EVERY = 1.0  # seconds; with so many of a batch's jobs under way, this bounds how fast it can be

PERIODIC: list[tuple[Callable[[], Any], float]] = []
"""What rooms above this one have done now and then: a task and its seconds, added when the app is ready."""


def queue(name: str) -> Queue:
    """A queue over this process's client, whose commands end in time. JSON, by the settings."""
    return django_rq.get_queue(name, connection=blocking())


def worker_key(worker: str) -> str:
    """Exists while that worker lives (`manage.py jobworker` renews it)."""
    return f"gt:jobworker:{worker}"


# -- putting into the queues ---------------------------------------------------------------------------


def enqueue_routing(job_id: str, attempts: int, delay_seconds: float = 0.0) -> None:
    """Queue a job, which has had so many attempts, for the next. Raises `redis.RedisError`.

    One task for each attempt: asked for again while it is under way, nothing happens.
    """
    # Retries are for what breaks (Redis or the database is away), with growing pauses.
    retry = Retry(max=len(_RETRY_SECONDS), interval=_RETRY_SECONDS)
    delay = datetime.timedelta(seconds=delay_seconds)
    _once("routing", _route_name(job_id, attempts), route, job_id, delay=delay, retry=retry)


def enqueue_periodic() -> None:
    """Queue the sweep and the batches' turn if they are due, and now and then the tidying. Raises
    `redis.RedisError`.

    However many workers ask, there is one of each at a time.
    """
    for task, seconds in (
        (sweep, settings.SWEEP_SECONDS),
        (tidy, _TIDY_EVERY * settings.SWEEP_SECONDS),
        (batches, min(_BATCHES_EVERY, settings.SWEEP_SECONDS)),
        *PERIODIC,
    ):
        name = task.__name__
        # A little less, so that the next tick of the same clock is not just too early.
        due = blocking().set(f"gt:due:{name}", "1", nx=True, px=max(1, int(seconds * 900)))
        if due and not (task is batches and lull.known()):
            _once("maintenance", name, task)


def enqueue_missing(jobs: Sequence[tuple[str, int]]) -> int:
    """`enqueue_routing` for each of these (job, attempts) whose task does not wait already. Returns how many.

    Two trips for all that wait: a long queue must not make the sweep so slow that it keeps the queue long.
    """
    target, client = queue("routing"), blocking()
    listed: Any = client.lrange(target.key, 0, -1)
    later: Any = client.zrange(target.scheduled_job_registry.key, 0, -1)
    waiting = {name.decode() for name in [*listed, *later]}
    missing = [(job, n) for job, n in jobs if _route_name(job, n) not in waiting]
    for job, attempts in missing:
        enqueue_routing(job, attempts)  # it may be running
    return len(missing)


def enqueue_due() -> int:
    """Move tasks whose time has come from RQ's schedule into their queues. Raises `redis.RedisError`.

    RQ has a process of its own for this, which outlives a killed worker and holds its lock for a minute.
    """
    moved = 0
    for name in QUEUES:
        target = queue(name)
        schedule = target.scheduled_job_registry
        for task_id in schedule.get_jobs_to_schedule():
            # Whoever takes it out puts it in; one that is dropped in between is found by the sweep.
            if blocking().zrem(schedule.key, task_id) and (task := target.fetch_job(task_id)):
                target.enqueue_job(task)
                moved += 1
    return moved


def _route_name(job_id: str, attempts: int) -> str:
    return f"route-{job_id}-{attempts}"


def _once(
    queue_name: str,
    name: str,
    function: Callable[..., Any],
    *arguments: str,
    delay: datetime.timedelta = datetime.timedelta(),
    retry: Retry | None = None,
) -> None:
    target = queue(queue_name)
    if known := target.fetch_job(name):
        if _under_way(target, known):
            return
        known.delete()
    how: dict[str, Any] = {"job_id": name, "retry": retry, "result_ttl": 60, "failure_ttl": 86400}
    if delay:
        target.enqueue_in(delay, function, *arguments, **how)
    else:
        target.enqueue(function, *arguments, **how)


def _under_way(target: Queue, task: Task) -> bool:
    match task.get_status():
        case JobStatus.QUEUED:
            return blocking().lpos(target.key, task.id) is not None
        case JobStatus.SCHEDULED:
            return blocking().zscore(target.scheduled_job_registry.key, task.id) is not None
        case JobStatus.STARTED:
            return bool(blocking().exists(worker_key(task.worker_name or "")))
    return False


# -- what is in them -----------------------------------------------------------------------------------


def route(job_id: str) -> str:
    """Place one asynchronous job. What cannot be placed now is queued again by the sweep."""
    try:
        return async_to_sync(asynchronous.route)(job_id)
    except asynchronous.TryAgainLater as e:
        return f"later: {e}"


def sweep() -> dict[str, int]:
    """Nodes that fell silent, jobs that nothing moves, and what differs between ledger, board and agents."""
    return _said("sweep", {"unhealthy": registry.mark_unhealthy(), **async_to_sync(sweeping.sweep)()})


def tidy() -> dict[str, int]:
    """What is too old, roll-ups of the nodes' figures, left-over keys."""
    samples.thin()
    done = {"expired": retention.tidy(), "files": files.tidy(), "logins": logins.tidy()}
    done["left_over"] = async_to_sync(pruning.clear)()
    return _said("tidy", done)


def batches() -> dict[str, int]:
    """Send on lines of the open batches, and take in their answers."""
    if lull.found():
        return {"sent": 0, "answered": 0, "ended": 0}
    return _said("batches", async_to_sync(batch_turns.turn)())


def _said(what: str, done: dict[str, int]) -> dict[str, int]:
    if any(done.values()):
        log.info("%s %s", what, " ".join(f"{k}={v}" for k, v in done.items()))
    return done
