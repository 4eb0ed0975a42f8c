"""The sweep: every few seconds, find what nothing moves any more, and move it. Safe to run twice at once.

What it does when a node is lost is here; where the ledger, the board and the agents differ, `jobs.reconcile`
puts it right. Every step is a conditional write on the ledger, or one atomic step of the board.
"""

from __future__ import annotations

import datetime

from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from gputorrent.redis import piped
from jobs import asynchronous, breaker, cancelling, interactive, reconcile
from jobs.board import Board, Held
from jobs.breaker import Verdict
from jobs.models import Job, JobState
from nodes.models import Node
from nodes.view import Snapshot


async def sweep() -> dict[str, int]:
    """One sweep; returns how much was done. Raises `redis.RedisError`, and what the database raises."""
    async with piped() as pipe:
        snapshot, board = Snapshot(), Board(pipe)
        await snapshot.refresh(pipe)
        held = {(h.job, h.attempt): h for h in await board.held() if not h.owner}
        lost = await sync_to_async(_rescue_running)(snapshot)
        idle = await sync_to_async(_held_by_the_lost)(snapshot, list(held.values()))
        for key in {*lost, *idle} & held.keys():
            h = held.pop(key)
            verdict = breaker.verdict(interactive.NODE_LOST) if key in lost else Verdict.NOTHING
            await board.release(h.node, h.model, h.job, h.attempt, verdict)
        healed = await reconcile.reconcile(pipe, board, snapshot)
        for job_id in await board.overdue():
            await board.leave(job_id)
        # In this order: what leaves the queue meanwhile is among the slots, and what leaves its slot has
        # moved in the ledger first, so that its version is not the one read here.
        pending = await sync_to_async(_quiet_pending)()
        known = {w.job for w in await board.waiting()}
        known |= {h.job for h in await board.held()}
        still = [job for job in pending if job.pk not in known]
        queued = await sync_to_async(asynchronous.queue_again)(still, _just_now()) if still else 0
        revoked = await cancelling.end_those_of_dead_keys(board, pipe)
        return {"rescued": len(lost), "queued_again": queued, "revoked": revoked, "healed": healed}


def _rescue_running(snapshot: Snapshot) -> list[tuple[str, int]]:
    """Running jobs whose node is gone or restarted without them: job and attempt."""
    if snapshot.redis_was_emptied:
        return []
    lost = []
    quiet = _quiet()
    running = Job.objects.filter(asynchronous=True, state=JobState.RUNNING, placed_at__lt=quiet)
    for job in running.defer("request", "result").select_related("node"):
        if _away(job.node, snapshot, job.placed_at or quiet, quiet):
            number = job.attempt_count
            reason = "the node has gone silent or was restarted"
            if asynchronous.attempt_lost(job, interactive.NODE_LOST, reason):
                lost.append((job.id, number))
    return lost


def _held_by_the_lost(snapshot: Snapshot, held: list[Held]) -> list[tuple[str, int]]:
    """Attempts with a slot on a node that left before it said that it began."""
    if snapshot.redis_was_emptied:
        return []
    quiet = _quiet()
    old = [(h, at) for h in held if (at := _at(h.placed_at_ms)) <= quiet]
    pending = set(
        Job.objects.filter(pk__in=[h.job for h, _ in old], state=JobState.PENDING).values_list(
            "pk", "attempt_count"
        )
    )
    nodes = Node.objects.in_bulk({h.node for h, _ in old})
    return [
        (h.job, h.attempt)
        for h, at in old
        if (h.job, h.attempt) in pending and _away(nodes.get(h.node), snapshot, at, quiet)
    ]


def _away(node: Node | None, snapshot: Snapshot, since: datetime.datetime, quiet: datetime.datetime) -> bool:
    """Whether a node is gone, or was started again after it was given work at `since`."""
    if node is None or (node.pk not in snapshot.leased and (node.last_beat_at or quiet) <= quiet):
        return True
    return bool(node.registered_at and node.registered_at > since)


def _quiet() -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=3 * settings.LEASE_SECONDS)


def _at(milliseconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)


def _just_now() -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=2 * settings.SWEEP_SECONDS)


def _quiet_pending() -> list[Job]:
    pending = Job.objects.filter(asynchronous=True, state=JobState.PENDING, created_at__lt=_just_now())
    return list(pending.defer("request", "result")[:1000])
