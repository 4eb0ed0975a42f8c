"""Jobs that nobody waits for: accepted with 202, routed by django-rq, answered over HTTP.

The ledger is their only memory: the row is committed before the 202, and every step is a conditional write
on it, so each may run twice. The verbs named `async` talk to the board; the others block.
"""

from __future__ import annotations

import datetime
import logging
import math
import random
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any

import redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction
from django.utils import timezone

from gputorrent.redis import Pipe, piped
from jobs import accounting, breaker, cancelling, interactive, poison, prompt, routing, spreading
from jobs.accounting import Spent
from jobs.board import Board, Full, Placed
from jobs.breaker import Verdict
from jobs.candidates import candidates
from jobs.errors import HeldOff
from jobs.interactive import RETRYABLE, Request, new_job_id
from jobs.lifecycle import Move, move
from jobs.mailbox import tell
from jobs.models import Attempt, Job, JobState
from jobs.scoring import Candidate
from nodes.models import Node, NodeState
from nodes.registry import Refusal, check_incarnation
from nodes.view import Snapshot
from worker_agent.contract import Done, Failed, Load, Outcome, Report, Work

log = logging.getLogger(__name__)


class TryAgainLater(Exception):
    """Nothing can be decided now; the sweep queues the job again."""


class TooLate(DatabaseError):
    """The ledger was so slow that the caller has been refused meanwhile."""


def accept(request: Request, give_up_at: float = math.inf, job_id: str = "") -> Job:
    """Accept a job: committed before this returns. To be queued next (`queue`).

    Raises `TooLate`, with nothing kept, when it comes to the commit after `give_up_at` (monotonic seconds):
    a caller who was refused sends it again.
    """
    with transaction.atomic():
        job = Job.objects.create(
            id=job_id or new_job_id(),
            path=request.path,
            model=request.model,
            key_id=request.key,
            asynchronous=True,
            priority=request.priority,
            request=request.body,
        )
        if time.monotonic() > give_up_at:
            raise TooLate("the caller has been refused")
    return job


def queue(job: Job) -> None:
    """Queue a new job for routing. After the commit, or a fast worker would look for a row that is not there
    yet. When Redis is away the job is safe in the ledger, and the sweep queues it."""
    from jobs import tasks

    try:
        tasks.enqueue_routing(job.id, 0)
    except redis.RedisError as e:
        log.warning("redis unavailable error=%s job=%s waits for the sweep", type(e).__name__, job.id)


def submit(request: Request) -> Job:
    """Accept a job and queue it, for whoever may block."""
    job = accept(request)
    queue(job)
    return job


# -- routing -------------------------------------------------------------------------------------------


async def route(job_id: str) -> str:
    """Claim the next attempt and give it to the board. Returns what came of it, for the task's record.

    Raises `TryAgainLater`, `redis.RedisError`.
    """
    async with piped() as pipe:
        snapshot, board = Snapshot(), Board(pipe)
        await snapshot.refresh(pipe)
        if snapshot.redis_was_emptied:
            raise TryAgainLater("the registry is being rebuilt")
        found = await sync_to_async(_open_job)(job_id)
        if found is None:
            return "not pending"
        return await _route(*found, snapshot, board, pipe)


_NOT_AGAINST_THE_NODE = interactive.NO_FAULT | {
    interactive.NODE_LOST,
    Outcome.DRAINING,
    Outcome.ENGINE_BUSY,
}
"""Nobody waits: what was so a while ago need not keep a job from the only node there is."""


def _open_job(job_id: str) -> tuple[Job, set[str], set[str]] | None:
    """A pending job, the nodes it has been to, and those of them that are not to see it again."""
    job = Job.objects.select_related("key").filter(pk=job_id, state=JobState.PENDING).first()
    if job is None:
        return None
    ends = job.attempts.exclude(node=None).values_list("node_id", "outcome")
    visited = {str(node) for node, _ in ends}
    return job, visited, {str(node) for node, outcome in ends if outcome not in _NOT_AGAINST_THE_NODE}


async def _route(
    job: Job, visited: set[str], tried: set[str], snapshot: Snapshot, board: Board, pipe: Pipe
) -> str:
    seen, tenant, body = await board.look(), str(job.key_id or 0), bytes(job.request or b"")
    try:
        poison.check(seen.strikes, tenant, job.model, body, time.monotonic())
    except HeldOff as e:
        await sync_to_async(_fail)(job, e.code, str(e))
        return f"refused: {e.code}"
    only = await sync_to_async(_allowed)(job)
    offered = candidates(snapshot, seen.loads, seen.breakers, job.model, only)
    hints = routing.Hints(prompt.tokens_of_body(body, job.path), spreading.drawn(job.id, offered))
    decision = routing.choose(offered, visited, hints)
    if isinstance(decision, routing.Refuse) and visited != tried:
        decision = routing.choose(offered, tried, hints)
    if isinstance(decision, routing.Refuse):
        if decision.why == routing.Why.UNKNOWN_MODEL and only is not None and job.model in snapshot.by_model:
            raise TryAgainLater("none of the nodes that its key may use offers the model")
        if decision.why in {routing.Why.NO_WORKERS, routing.Why.LOAD_FAILED}:
            raise TryAgainLater("no live node serves the model")
        if decision.why == routing.Why.ALL_TRIED and _may_be_back(snapshot, offered, tried):
            raise TryAgainLater("the nodes that have not tried it are away")
        message = {
            routing.Why.NEVER_FITS: f"The model fits on no node: {decision.detail}",
            routing.Why.UNKNOWN_MODEL: f"The model `{job.model}` does not exist: no node offers it.",
            routing.Why.ALL_TRIED: "every node that serves the model has failed at it",
        }[decision.why]
        await sync_to_async(_fail)(job, str(decision.why), message)
        return f"refused: {decision.why}"
    if await board.position(job.id) is not None:
        return "waiting already"  # asked twice: another claim would make a stranger of the attempt that waits
    attempt = await sync_to_async(_claim)(job)
    if attempt is None:
        return "moved by another"
    if isinstance(decision, routing.Load):
        await tell(pipe, decision.node, Load(job.model))
    order = [s.node for s in decision.order] if isinstance(decision, routing.Place) else []
    work = Work(
        job=job.id,
        attempt=attempt.number,
        lease=bytes.fromhex(attempt.lease),
        reply="",
        model=job.model,
        path=job.path,
        body=body,
        stream=False,
        hide_usage=False,
        first_token_seconds=settings.FIRST_TOKEN_SECONDS,
        stall_seconds=settings.STALL_SECONDS,
        total_seconds=settings.TOTAL_SECONDS,
    )
    answer = await board.reserve(
        work,
        order,
        tenant=tenant,
        priority=min(job.priority, -1),  # behind those whose callers wait
        wait_seconds=settings.RESULT_TTL_SECONDS,
        tried=tried | decision.barred,
        only=only,
    )
    if isinstance(answer, Full):
        await sync_to_async(_unclaim)(attempt)
        raise TryAgainLater("the queue is full")
    if await sync_to_async(cancelling.has_ended)(job.id):  # cancelled while the board was asked
        await cancelling.withdraw(board, pipe, job.id)
        return "ended meanwhile"
    if isinstance(answer, Placed):
        why = next((str(s) for s in getattr(decision, "order", ()) if s.node == answer.node), "")
        await sync_to_async(_placed)(job.id, attempt.number, answer.node, why)
        return f"placed on {answer.node}"
    return f"waiting behind {answer.position}"


def _allowed(job: Job) -> frozenset[str] | None:
    """The nodes that may see the job, by its key; None: all."""
    return job.key.node_ids() if job.key else None


def _may_be_back(snapshot: Snapshot, offered: Sequence[Candidate], tried: Collection[str]) -> bool:
    """Whether a node that has not failed at the job is away for the moment: silent, or not back since Redis
    was emptied. One that said goodbye, or drains, is not waited for."""
    back = {NodeState.ONLINE, NodeState.UNHEALTHY}
    away = [c.node for c in offered if not c.takes_work and c.node not in tried]
    return any(snapshot.nodes[node].state in back for node in away if node in snapshot.nodes)


def _claim(job: Job) -> Attempt | None:
    """Count an attempt from here on, whatever becomes of it. None if somebody else moved the job."""
    with transaction.atomic():
        claimed = Job.objects.filter(
            pk=job.pk, state=JobState.PENDING, version=job.version, attempt_count__lt=settings.ATTEMPTS
        ).update(attempt_count=job.attempt_count + 1, version=job.version + 1)
        if not claimed:
            return None
        job.attempt_count += 1
        job.version += 1
        # What waited on the board when Redis lost it, or never got there, was never heard of again.
        lost = {"outcome": interactive.WIRE_LOST, "reason": "it was lost on its way to a node"}
        job.attempts.filter(outcome="").update(**lost, finished_at=timezone.now())
        return Attempt.objects.create(job=job, number=job.attempt_count, lease=secrets.token_hex(16))


def _unclaim(attempt: Attempt) -> None:
    with transaction.atomic():
        Job.objects.filter(pk=attempt.job_id, attempt_count=attempt.number).update(
            attempt_count=attempt.number - 1
        )
        attempt.delete()


def _placed(job_id: str, number: int, node: str, why: str = "") -> bool:
    """An attempt is on a node: said by the board, or by the node when it starts. Idempotent."""
    with transaction.atomic():
        job = Job.objects.filter(pk=job_id, attempt_count=number, state=JobState.PENDING).first()
        if job is None:
            return False
        now = timezone.now()
        Attempt.objects.filter(job=job, number=number).update(node=node, placed_at=now)
        return move(job, Move.PLACE, node_id=node, placed_at=now, why=why[:300] or job.why)


# -- the node's word -----------------------------------------------------------------------------------


async def report(node: Node, message: Report, board: Board) -> None:
    """Take what a node says of an attempt. Raises `Refusal` 409 for one that is not live, or not its own.

    The slot is given back after the ledger has the result; if that fails the node sends again.
    """
    check_incarnation(node, message.incarnation)
    outcome, job, asked = await sync_to_async(_take_report)(node, message)
    if message.reply is None and outcome == "live":
        return
    if job:
        verdict = breaker.of_reply(message.reply) if outcome != "stale" else Verdict.NOTHING
        suspect = ""
        if asked and (verdict == Verdict.OK or poison.is_strike(message.reply)):
            suspect = poison.fingerprint(str(job.key_id or 0), job.model, asked)
        await board.release(node.pk, job.model, message.job, message.attempt, verdict, suspect)
    if outcome == "stale":
        raise Refusal(409, "not_live", "this attempt is not live: stop it and forget it")


def _take_report(node: Node, message: Report) -> tuple[str, Job | None, bytes]:
    """'live' if the report was for the live attempt, 'done' if it had been taken before, else 'stale'; the
    job, and its request as it was before the end of the job dropped it."""
    job = Job.objects.filter(pk=message.job).first()
    asked = bytes(job.request or b"") if job else b""
    return _taken(node, message, job), job, asked


def _taken(node: Node, message: Report, job: Job | None) -> str:
    attempt = Attempt.objects.filter(job_id=message.job, number=message.attempt).first()
    if job is None or attempt is None or attempt.lease != message.lease.hex():
        return "stale"
    if attempt.outcome:
        return "done" if message.reply is not None and attempt.node_id == node.pk else "stale"
    _placed(message.job, message.attempt, node.pk)
    job.refresh_from_db()  # even if that changed nothing: the router may have noted the same just now
    if job.attempt_count != message.attempt or job.state != JobState.RUNNING or job.node_id != node.pk:
        return "stale"
    if message.reply is None:
        return "live"
    with transaction.atomic():
        if isinstance(message.reply, Done):
            taken = _take_answer(job, attempt, message.reply)
        else:
            taken = _take_failure(job, attempt, message.reply)
    return "live" if taken else "stale"


def _take_answer(job: Job, attempt: Attempt, done: Done) -> bool:
    now = timezone.now()
    spent = accounting.of_usage(done.usage)
    _close(attempt, "done" if done.status < 400 else "rejected", "", spent)
    columns: dict[str, Any] = {
        "finished_at": now,
        "http_status": done.status,
        "request": None,
        "result": done.body,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
    }
    if done.first_token_ms:
        columns["first_token_at"] = now - datetime.timedelta(milliseconds=done.total_ms - done.first_token_ms)
    if done.status < 400:
        return move(job, Move.COMPLETE, **columns)
    message = f"the engine answered {done.status}"
    return move(job, Move.FAIL, error_code="rejected_by_engine", error_message=message, **columns)


def _take_failure(job: Job, attempt: Attempt, failed: Failed) -> bool:
    _close(attempt, failed.outcome, failed.message)
    if failed.outcome in RETRYABLE and job.attempt_count < settings.ATTEMPTS:
        return requeue(job)
    return _fail(job, "upstream_failed", failed.message or str(failed.outcome))


def _close(attempt: Attempt, outcome: str, reason: str, spent: Spent = accounting.NOTHING) -> None:
    """Note how an attempt ended, once, and account for it."""
    now = timezone.now()
    with transaction.atomic():
        open_one = Attempt.objects.filter(pk=attempt.pk, outcome="")
        if open_one.update(outcome=outcome, reason=reason[:500], finished_at=now):
            attempt.refresh_from_db(fields=["placed_at", "finished_at"])
            entry = accounting.of_attempt(attempt, attempt.job, spent)
            accounting.tell([entry] if entry else [], DEFAULT_DB_ALIAS)


def requeue(job: Job) -> bool:
    """Back to pending, and to the routing queue, with a pause that grows with the attempts, jittered."""
    from jobs import tasks

    if not move(job, Move.REQUEUE, node=None):
        return False
    pause = random.uniform(0.5, 1.0) * 2**job.attempt_count  # noqa: S311 - seconds
    transaction.on_commit(lambda: tasks.enqueue_routing(job.id, job.attempt_count, pause))
    return True


def attempt_lost(job: Job, outcome: str, reason: str) -> bool:
    """The attempt that a running job is at has come to nothing: another, if any is left. False if the job has
    moved meanwhile."""
    if attempt := job.attempts.filter(number=job.attempt_count).first():
        _close(attempt, outcome, reason)
    if job.attempt_count < settings.ATTEMPTS:
        return requeue(job)
    return _fail(job, "upstream_failed", "every attempt was lost with its node")


def queue_again(jobs: Sequence[Job], quiet: datetime.datetime) -> int:
    """Nothing moves these pending jobs, or so it was when they were read; `quiet` is since when nothing
    should have. Returns how many were queued. Raises `redis.RedisError`."""
    from jobs import tasks

    spent = {job.pk: job for job in jobs if job.attempt_count >= settings.ATTEMPTS}
    fresh = Attempt.objects.filter(job__in=list(spent), claimed_at__gt=quiet)
    for name in spent.keys() - set(fresh.values_list("job_id", flat=True)):
        _fail(spent[name], "upstream_failed", "every attempt was lost on its way to a node")
    return tasks.enqueue_missing([(job.pk, job.attempt_count) for job in jobs if job.pk not in spent])


def _fail(job: Job, code: str, message: str) -> bool:
    return move(
        job,
        Move.FAIL,
        finished_at=timezone.now(),
        error_code=code,
        error_message=message[:500],  # its request is kept for a while: see jobs.retrying
    )
