"""Ending jobs from outside: one by its id, wherever it is, and all those of keys that were revoked.

A job whose caller waits is ended by the web process that answers it. An asynchronous job lives in the
ledger: it ends there first, so that nothing brings it back, and is then taken off the board or stopped on
its node. So is a job whose web process is gone.
"""

from __future__ import annotations

import asyncio
import logging

import redis
from django.db.models import Q
from django.utils import timezone

from gputorrent import ledger
from gputorrent.redis import Pipe
from jobs.board import Board
from jobs.dispatch import Dispatcher
from jobs.errors import Cancelled, JobError, KeyRevoked
from jobs.lifecycle import move
from jobs.mailbox import tell
from jobs.models import TERMINAL, Job, JobState
from worker_agent.contract import Cancel, Outcome

log = logging.getLogger(__name__)

END_SECONDS = 1.5
_LOOK_SECONDS = 0.05
_STREAM_SECONDS = 0.6
_OPEN = [state for state in JobState if state not in TERMINAL]


async def cancel(dispatcher: Dispatcher, job: Job) -> None:
    """End a job that may be anywhere; returns when it has ended, or after `END_SECONDS`.

    Asked for again, nothing more happens. Of a job that has ended, what is still kept of its prompt and its
    result is dropped. Raises `DatabaseError`; `redis.RedisError` when its web process cannot be told.
    """
    if job.state in TERMINAL:
        if job.asynchronous:
            await ledger.ask(_drop, job.id)
    elif job.asynchronous or not await _by_its_process(dispatcher, job):
        await end(dispatcher.board, dispatcher.pipe, job.id, Cancelled())
    else:
        await _ended(dispatcher, job.id)


async def _by_its_process(dispatcher: Dispatcher, job: Job) -> bool:
    """Have the web process that answers a job end it. False if there is no such process any more."""
    here = dispatcher.mailbox
    if dispatcher.cancel(job.id, Cancelled()) or job.web == here.web:
        return True
    if await here.ask_to_cancel(job.web, job.id):
        return True
    # Redis may have come back empty a moment ago; a process that lives makes its stream anew.
    await asyncio.sleep(_STREAM_SECONDS)
    return await here.ask_to_cancel(job.web, job.id)


async def _ended(dispatcher: Dispatcher, job_id: str) -> None:
    loop = asyncio.get_running_loop()
    limit = loop.time() + END_SECONDS
    await dispatcher.recorder.written(job_id)
    while True:  # the row is written by whoever ends the job
        if await ledger.ask(has_ended, job_id) or loop.time() > limit:
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def end(board: Board, pipe: Pipe, job_id: str, error: JobError) -> bool:
    """End a job in the ledger, and what is under way for it. Returns False if it had ended.

    Raises `DatabaseError`.
    """
    if not await ledger.ask(_end, job_id, error):
        return False
    try:
        await withdraw(board, pipe, job_id)
    except redis.RedisError as e:
        # Its node hears with its next word on the attempt that it is not live; the sweep finds the rest.
        log.warning("redis unavailable error=%s job=%s ended in the ledger alone", type(e).__name__, job_id)
    return True


async def withdraw(board: Board, pipe: Pipe, job_id: str) -> None:
    """Take a job that has ended off the board, or have its node stop; the slot comes back with the node's
    word. Raises `redis.RedisError`."""
    if await board.leave(job_id):
        return
    for held in await board.held():
        if held.job == job_id:
            await tell(pipe, held.node, Cancel(job_id, held.attempt))


async def end_those_of_dead_keys(board: Board, pipe: Pipe) -> int:
    """End the asynchronous jobs of keys that were revoked or have expired. Safe to run twice at once.
    Returns how many. Raises `DatabaseError`."""
    found = await ledger.ask(_of_dead_keys)
    return sum([await end(board, pipe, job_id, KeyRevoked()) for job_id in found])


# -- in the ledger -------------------------------------------------------------------------------------


def has_ended(job_id: str) -> bool:
    """Whether nothing more is to come of a job."""
    return not Job.objects.filter(pk=job_id, state__in=_OPEN).exists()


def _end(job_id: str, error: JobError) -> bool:
    for _ in range(20):  # somebody else may move it in the same moment
        job = Job.objects.defer("request", "result").filter(pk=job_id).first()
        if job is None or job.state in TERMINAL:
            return False
        columns = {"error_code": error.code, "error_message": str(error)[:500], "request": None}
        if move(job, error.move, outcome=Outcome.CANCELLED, finished_at=timezone.now(), **columns):
            return True
    return False


def _drop(job_id: str) -> None:
    kept = Job.objects.filter(pk=job_id, state__in=TERMINAL).exclude(request=None, result=None)
    kept.update(request=None, result=None)


def _of_dead_keys() -> list[str]:
    dead = Q(key__revoked_at__isnull=False) | Q(key__expires_at__lte=timezone.now())
    jobs = Job.objects.filter(dead, asynchronous=True, state__in=_OPEN).order_by()
    return list(jobs.values_list("pk", flat=True)[:1000])
