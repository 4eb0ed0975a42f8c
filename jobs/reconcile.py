"""Compares the ledger, the board and the agents' own lists, heals what differs, and counts it (`jobs.heals`).

Nothing is read at one moment, so each rule asks for proof that outlasts the difference:

- An agent's list counts as `nodes.listing` says: two of them, both well after the fact they contradict.
- Signs of life of web processes count as `jobs.owners` says; jobs of live ones are theirs to look after
  (`jobs.recount`).
- Nothing counts soon after Redis came back empty: what is not there may not have been put back yet.
- A slot is given back by the attempt's name and a job is moved by its version, so a second reconciler, or one
  whose facts are old, changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from asgiref.sync import sync_to_async
from django.utils import timezone

from gputorrent.redis import Pipe
from jobs import asynchronous, heals, interactive, owners
from jobs.board import Board, Held, Waits
from jobs.heals import Heal
from jobs.lifecycle import Move, move
from jobs.mailbox import tell
from jobs.models import TERMINAL, Attempt, Job, JobState
from nodes import listing
from nodes.listing import GRACE_SECONDS, Listing
from nodes.view import Snapshot
from worker_agent.contract import Cancel

_SLOT_SECONDS = 15.0
"""A slot may outlive its job by as long as a node may take to say that it has stopped."""
_UNRECORDED_SECONDS = 60.0
"""A job without a row after so long has none: rows are written within a second, or a little after the
database was away."""
_TELL_AGAIN_SECONDS = 30
_AT_ONCE = 1000

Ref = tuple[str, int]  # job and attempt


@dataclass(frozen=True, slots=True)
class _Facts:
    now: float  # Redis's clock, seconds
    waiting: list[Waits]
    held: list[Held]
    lists: dict[str, Listing]
    gone: set[str]  # web processes


async def reconcile(pipe: Pipe, board: Board, snapshot: Snapshot) -> int:
    """Returns how much was healed. Raises `redis.RedisError`, and what the database raises."""
    now, settled = await owners.now_and_settled(pipe)
    if not settled or snapshot.redis_was_emptied:
        return 0
    waiting, held, lists = await asyncio.gather(board.waiting(), board.held(), listing.read(pipe))
    webs = await sync_to_async(_open_webs)()
    on_board = {*(h.owner for h in held), *(w.owner for w in waiting)} - {""}
    gone = await owners.gone(pipe, webs | on_board)
    facts = _Facts(now, waiting, held, lists, gone)
    healed: Counter[Heal] = Counter()
    healed[Heal.RECORD] = await sync_to_async(_fail_records)(webs & gone)
    healed[Heal.LOST_WORK] = await _find_lost_work(facts, board, snapshot)
    healed[Heal.WAITER] = await _clear_queues(facts, board)
    healed[Heal.SLOT] = await _give_back_slots(facts, pipe, board)
    healed[Heal.UNWANTED_WORK] = await _stop_unwanted_work(facts, pipe)
    for kind, times in healed.items():
        await heals.note(pipe, kind, times)
    return healed.total()


# -- web processes that are gone -----------------------------------------------------------------------


def _open_webs() -> set[str]:
    """The web processes that have open rows."""
    rows = Job.objects.filter(asynchronous=False, state__in=[JobState.PENDING, JobState.RUNNING])
    return set(rows.exclude(web="").order_by().values_list("web", flat=True).distinct())


def _fail_records(webs: Iterable[str]) -> int:
    """End the open rows of these web processes."""
    now, failed = timezone.now(), 0
    rows = Job.objects.filter(state__in=[JobState.PENDING, JobState.RUNNING], web__in=webs)
    for job in rows.filter(asynchronous=False).defer("request", "result")[:_AT_ONCE] if webs else ():
        message = "the process that answered has died"
        if move(job, Move.FAIL, finished_at=now, error_code="coordinator_lost", error_message=message):
            failed += 1
    return failed


# -- asynchronous jobs that their node does not have ---------------------------------------------------


async def _find_lost_work(facts: _Facts, board: Board, snapshot: Snapshot) -> int:
    """Give up attempts at asynchronous jobs that their node does not have; the next follows."""
    held = {(h.job, h.attempt): h for h in facts.held if not h.owner}
    lists = {
        node: each
        for node, each in facts.lists.items()
        if node in snapshot.nodes and snapshot.nodes[node].incarnation == each.incarnation
    }
    lost = await sync_to_async(_lost_running)(lists, held)
    lost += [
        ref
        for ref, h in held.items()
        if h.node in lists and lists[h.node].lacks(f"{h.job}:{h.attempt}", h.placed_at_ms / 1000)
    ]
    for h in [held[ref] for ref in set(lost) & held.keys()]:
        await board.release(h.node, h.model, h.job, h.attempt)
    return len(set(lost))


def _lost_running(lists: dict[str, Listing], held: dict[Ref, Held]) -> list[Ref]:
    lost = []
    running = Job.objects.filter(asynchronous=True, state=JobState.RUNNING, node__in=list(lists))
    for job in running.defer("request", "result"):
        ref = (job.id, job.attempt_count)
        h = held.get(ref)
        # The board dates by Redis's clock, the ledger by a host's: the grace is longer than they differ.
        since = h.placed_at_ms / 1000 if h else job.placed_at.timestamp() if job.placed_at else 0.0
        if not lists[str(job.node_id)].lacks(f"{ref[0]}:{ref[1]}", since):
            continue
        if asynchronous.attempt_lost(job, interactive.WIRE_LOST, "the node does not have it"):
            lost.append(ref)
    return lost


# -- the board -----------------------------------------------------------------------------------------


async def _give_back_slots(facts: _Facts, pipe: Pipe, board: Board) -> int:
    """Slots of web processes that are gone, and of asynchronous jobs that are over; their nodes are told."""
    old = [h for h in facts.held if facts.now - h.placed_at_ms / 1000 > _SLOT_SECONDS]
    over = await sync_to_async(_over)([(h.job, h.attempt) for h in old if not h.owner])
    idle = [h for h in facts.held if h.owner in facts.gone]
    idle += [h for h in old if over.get((h.job, h.attempt), facts.now) + _SLOT_SECONDS < facts.now]
    given = 0
    for h in idle:
        await _tell_to_stop(pipe, h.node, (h.job, h.attempt))
        given += bool(await board.release(h.node, h.model, h.job, h.attempt))
    return given


async def _clear_queues(facts: _Facts, board: Board) -> int:
    """Entries in the queues for which nobody waits."""
    over = await sync_to_async(_over)([(w.job, w.attempt) for w in facts.waiting if not w.owner])
    idle = [w.job for w in facts.waiting if w.owner in facts.gone]
    idle += [job for (job, _), since in over.items() if since + _SLOT_SECONDS < facts.now]
    return sum([await board.leave(job) for job in idle])


# -- the nodes -----------------------------------------------------------------------------------------


async def _stop_unwanted_work(facts: _Facts, pipe: Pipe) -> int:
    """What an agent has been at for two beats though it was over before the first: tell it to stop."""
    on_board = {(h.job, h.attempt) for h in facts.held}
    lasting = {
        (node, ref)
        for node, each in facts.lists.items()
        if each.is_fresh(facts.now)
        for name in each.lasting
        if (ref := _ref(name)) and ref not in on_board
    }
    over = await sync_to_async(_over)([ref for _, ref in lasting])
    stopped = 0
    for node, ref in lasting:
        if over.get(ref, facts.now) + GRACE_SECONDS <= facts.lists[node].before_at:
            stopped += await _tell_to_stop(pipe, node, ref)
    return stopped


async def _tell_to_stop(pipe: Pipe, node: str, ref: Ref) -> bool:
    """Not again with every sweep, before the node has had time. Returns whether it was told now."""
    key = f"gt:told:{ref[0]}:{ref[1]}"
    if not await pipe.send("SET", key, "1", "NX", "EX", _TELL_AGAIN_SECONDS):
        return False
    await tell(pipe, node, Cancel(*ref))
    return True


def _ref(name: str) -> Ref | None:
    job, _, attempt = name.rpartition(":")
    return (job, int(attempt)) if attempt.isdecimal() else None


# -- the ledger ----------------------------------------------------------------------------------------


def _over(refs: list[Ref]) -> dict[Ref, float]:
    """Since when each of these attempts is over (seconds); those that are live, as far as the ledger knows,
    are left out. Job ids begin with the time they were made, so one without a row can be dated too."""
    names = {job for job, _ in refs}
    jobs = Job.objects.defer("request", "result").in_bulk(list(names)) if names else {}
    superseded = {(name, n) for name, n in refs if name in jobs and jobs[name].attempt_count > n}
    ends = {
        (a.job_id, a.number): a.finished_at or a.claimed_at
        for a in Attempt.objects.filter(job__in={name for name, _ in superseded})
        if (a.job_id, a.number) in superseded
    }
    over = {}
    for name, number in refs:
        job = jobs.get(name)
        if job is None:
            over[name, number] = _made_at(name) + _UNRECORDED_SECONDS
        elif (name, number) in superseded:
            over[name, number] = (ends.get((name, number)) or job.created_at).timestamp()
        elif job.state in TERMINAL and job.finished_at:
            over[name, number] = job.finished_at.timestamp()
    return over


def _made_at(job: str) -> float:
    """When a job id (a UUIDv7 in hex) was made, in seconds; never, for what is none."""
    try:
        return int(job[:12], 16) / 1000
    except ValueError:
        return math.inf
