"""Jobs that nobody waits for: accepted with 202, routed by django-rq, answered over HTTP.

The ledger is their only memory: the row is committed before the 202, and every step is a conditional write
on it, so each may run twice. The verbs named `async` talk to the board; the others block.
"""

from __future__ import annotations

import datetime
import logging
import secrets
from typing import Any

import redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, transaction
from django.utils import timezone

from gputorrent.redis import Pipe, asynchronous
from jobs import accounting, interactive, routing
from jobs.accounting import Spent
from jobs.board import Board, Full, Held, Placed
from jobs.candidates import candidates
from jobs.interactive import RETRYABLE, Request, new_job_id
from jobs.lifecycle import Move, move
from jobs.models import Attempt, Job, JobState
from nodes.models import Node
from nodes.registry import Refusal, check_incarnation
from nodes.view import Snapshot
from worker_agent.contract import FIELD, Done, Failed, Load, Report, Work, control_key, encode

log = logging.getLogger(__name__)


class TryAgainLater(Exception):
    """Nothing can be decided now; the sweep queues the job again."""


def submit(request: Request, job_id: str = "") -> Job:
    """Accept a job: committed before this returns, then queued for routing."""
    from jobs import tasks

    job = Job.objects.create(
        id=job_id or new_job_id(),
        path=request.path,
        model=request.model,
        key_id=request.key,
        asynchronous=True,
        request=request.body,
    )
    # After the commit, or a fast worker would look for a row that is not there yet. When Redis is away the
    # job is safe in the ledger, and the sweep queues it.
    try:
        transaction.on_commit(lambda: tasks.enqueue_routing(job.id, 0))
    except redis.RedisError as e:
        log.warning("redis unavailable error=%s job=%s waits for the sweep", type(e).__name__, job.id)
    return job


# -- routing -------------------------------------------------------------------------------------------


async def route(job_id: str) -> str:
    """Claim the next attempt and give it to the board. Returns what came of it, for the task's record.

    Raises `TryAgainLater`, `redis.RedisError`.
    """
    client = asynchronous()
    try:
        pipe = Pipe(client)
        snapshot, board = Snapshot(), Board(pipe)
        await snapshot.refresh(pipe)
        if snapshot.redis_was_emptied:
            raise TryAgainLater("the registry is being rebuilt")
        found = await sync_to_async(_open_job)(job_id)
        if found is None:
            return "not pending"
        job, tried = found
        return await _route(job, tried, snapshot, board, pipe)
    finally:
        await client.aclose()


def _open_job(job_id: str) -> tuple[Job, set[str]] | None:
    job = Job.objects.select_related("key").filter(pk=job_id, state=JobState.PENDING).first()
    if job is None:
        return None
    tried = set(job.attempts.exclude(node=None).values_list("node_id", flat=True))
    return job, {t for t in tried if t}


async def _route(job: Job, tried: set[str], snapshot: Snapshot, board: Board, pipe: Pipe) -> str:
    loads = await board.loads()
    only = await sync_to_async(_allowed)(job)
    decision = routing.choose(candidates(snapshot, loads, job.model, only), tried)
    if isinstance(decision, routing.Refuse):
        if decision.why == routing.Why.UNKNOWN_MODEL and only is not None and job.model in snapshot.by_model:
            raise TryAgainLater("none of the nodes that its key may use offers the model")
        if decision.why in {routing.Why.NO_WORKERS, routing.Why.LOAD_FAILED}:
            raise TryAgainLater("no live node serves the model")
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
        await pipe.send("XADD", control_key(decision.node), "*", FIELD, encode(Load(job.model)))
    order = [s.node for s in decision.order] if isinstance(decision, routing.Place) else []
    work = Work(
        job=job.id,
        attempt=attempt.number,
        lease=bytes.fromhex(attempt.lease),
        reply="",
        model=job.model,
        path=job.path,
        body=bytes(job.request or b""),
        stream=False,
        hide_usage=False,
        first_token_seconds=settings.FIRST_TOKEN_SECONDS,
        stall_seconds=settings.STALL_SECONDS,
        total_seconds=settings.TOTAL_SECONDS,
    )
    answer = await board.reserve(
        work,
        order,
        tenant=str(job.key_id or 0),
        priority=min(-1, job.key.priority if job.key else 0),  # behind those whose callers wait
        wait_seconds=settings.RESULT_TTL_SECONDS,
        tried=tried,
        only=only,
    )
    if isinstance(answer, Full):
        await sync_to_async(_unclaim)(attempt)
        raise TryAgainLater("the queue is full")
    if isinstance(answer, Placed):
        why = next((str(s) for s in getattr(decision, "order", ()) if s.node == answer.node), "")
        await sync_to_async(_placed)(job.id, attempt.number, answer.node, why)
        return f"placed on {answer.node}"
    return f"waiting behind {answer.position}"


def _allowed(job: Job) -> frozenset[str] | None:
    """The nodes that may see the job, by its key; None: all."""
    return job.key.node_ids() if job.key else None


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
    outcome = await sync_to_async(_take_report)(node, message)
    if message.reply is None and outcome == "live":
        return
    model = await sync_to_async(
        lambda: Job.objects.filter(pk=message.job).values_list("model", flat=True).first()
    )()
    if model:
        await board.release(node.pk, model, message.job, message.attempt)
    if outcome == "stale":
        raise Refusal(409, "not_live", "this attempt is not live: stop it and forget it")


def _take_report(node: Node, message: Report) -> str:
    """'live' if the report was for the live attempt, 'done' if it had been taken before, else 'stale'."""
    attempt = Attempt.objects.filter(job_id=message.job, number=message.attempt).first()
    if attempt is None or attempt.lease != message.lease.hex():
        return "stale"
    if attempt.outcome:
        return "done" if message.reply is not None and attempt.node_id == node.pk else "stale"
    _placed(message.job, message.attempt, node.pk)
    job = Job.objects.get(pk=message.job)
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
    """Back to pending, and to the routing queue, with a pause that grows with the attempts."""
    from jobs import tasks

    if not move(job, Move.REQUEUE, node=None):
        return False
    transaction.on_commit(
        lambda: tasks.enqueue_routing(job.id, job.attempt_count, 0.5 * 2**job.attempt_count)
    )
    return True


def _fail(job: Job, code: str, message: str) -> bool:
    return move(
        job,
        Move.FAIL,
        finished_at=timezone.now(),
        error_code=code,
        error_message=message[:500],
        request=None,
    )


# -- the sweep -----------------------------------------------------------------------------------------


async def sweep() -> dict[str, int]:
    """Find asynchronous jobs that nothing moves any more, and move them. Safe to run twice at once."""
    client = asynchronous()
    try:
        pipe = Pipe(client)
        snapshot, board = Snapshot(), Board(pipe)
        await snapshot.refresh(pipe)
        held = {(h.job, h.attempt): h for h in await board.held() if not h.owner}
        lost = await sync_to_async(_rescue_running)(snapshot)
        idle = await sync_to_async(_held_for_nothing)(snapshot, list(held.values()))
        for key in {*lost, *idle} & held.keys():
            h = held.pop(key)
            await board.release(h.node, h.model, h.job, h.attempt)
        for job_id in await board.overdue():
            await board.leave(job_id)
        placed = {job_id for job_id, _ in held}
        queued = 0
        for job_id in await sync_to_async(_quiet_pending)():
            if job_id not in placed and await board.position(job_id) is None:
                await sync_to_async(_queue_again)(job_id)
                queued += 1
        expired = await sync_to_async(_expire)()
        return {"rescued": len(lost), "queued_again": queued, "expired": expired}
    finally:
        await client.aclose()


def _rescue_running(snapshot: Snapshot) -> list[tuple[str, int]]:
    """Running jobs whose node is gone or restarted without them: job and attempt."""
    if snapshot.redis_was_emptied:
        return []
    lost = []
    quiet = timezone.now() - datetime.timedelta(seconds=3 * settings.LEASE_SECONDS)
    running = Job.objects.filter(asynchronous=True, state=JobState.RUNNING, placed_at__lt=quiet)
    for job in running.select_related("node"):
        if not _away(job.node, snapshot, job.placed_at or quiet, quiet):
            continue
        attempt = job.attempts.filter(number=job.attempt_count).first()
        if attempt:
            _close(attempt, interactive.NODE_LOST, "the node has gone silent or was restarted")
        if job.attempt_count < settings.ATTEMPTS:
            requeue(job)
        else:
            _fail(job, "upstream_failed", "every attempt was lost with its node")
        lost.append((job.id, job.attempt_count))
    return lost


def _away(node: Node | None, snapshot: Snapshot, since: datetime.datetime, quiet: datetime.datetime) -> bool:
    """Whether a node is gone, or was started again after it was given work at `since`."""
    if node is None or (node.pk not in snapshot.leased and (node.last_beat_at or quiet) <= quiet):
        return True
    return bool(node.registered_at and node.registered_at > since)


def _held_for_nothing(snapshot: Snapshot, held: list[Held]) -> list[tuple[str, int]]:
    """Attempts with a slot that are not live any more, or whose node left before it said that it began."""
    if snapshot.redis_was_emptied:
        return []
    quiet = timezone.now() - datetime.timedelta(seconds=3 * settings.LEASE_SECONDS)
    jobs = Job.objects.defer("request", "result").in_bulk([h.job for h in held])
    nodes = Node.objects.in_bulk({h.node for h in held})
    found = []
    for h in held:
        since = datetime.datetime.fromtimestamp(h.placed_at_ms / 1000, datetime.UTC)
        job = jobs.get(h.job)
        state = job.state if job and job.attempt_count == h.attempt else None
        if since > quiet or state == JobState.RUNNING:
            continue
        if state != JobState.PENDING or _away(nodes.get(h.node), snapshot, since, quiet):
            found.append((h.job, h.attempt))
    return found


def _quiet_pending() -> list[str]:
    limit = timezone.now() - datetime.timedelta(seconds=2 * settings.SWEEP_SECONDS)
    pending = Job.objects.filter(asynchronous=True, state=JobState.PENDING, created_at__lt=limit)
    return list(pending.values_list("pk", flat=True)[:1000])


def _queue_again(job_id: str) -> None:
    from jobs import tasks

    job = Job.objects.get(pk=job_id)
    just_now = timezone.now() - datetime.timedelta(seconds=2 * settings.SWEEP_SECONDS)
    if job.attempt_count >= settings.ATTEMPTS and not job.attempts.filter(claimed_at__gt=just_now).exists():
        _fail(job, "upstream_failed", "every attempt was lost on its way to a node")
        return
    tasks.enqueue_routing(job_id, job.attempt_count)


def _expire() -> int:
    """End what has waited for longer than results are kept, and drop old results and old jobs."""
    now = timezone.now()
    expired = 0
    too_old = now - datetime.timedelta(seconds=settings.RESULT_TTL_SECONDS)
    for job in Job.objects.filter(asynchronous=True, state=JobState.PENDING, created_at__lt=too_old)[:1000]:
        expired += move(
            job,
            Move.EXPIRE,
            finished_at=now,
            error_code="expired",
            error_message="no node took it in time",
            request=None,
        )
    Job.objects.filter(finished_at__lt=too_old).exclude(result=None).update(result=None)
    Job.objects.filter(finished_at__lt=now - datetime.timedelta(seconds=settings.JOB_TTL_SECONDS)).delete()
    return expired
