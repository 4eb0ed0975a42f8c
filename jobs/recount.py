"""A web process compares what it knows of its own jobs with the board and the agents' lists.

Only the owner of a job can tell whether somebody still waits for it, so each looks after its own; the slots
of processes that are gone are everybody's, and `jobs.reconcile` sees to the asynchronous jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time

from jobs import heals, interactive, owners
from jobs.board import Held, Waits
from jobs.dispatch import Dispatcher
from jobs.heals import Heal
from jobs.interactive import InteractiveJob, Lost
from nodes import listing
from nodes.listing import Listing

log = logging.getLogger(__name__)

SLOT_GRACE_SECONDS = 15.0
"""A slot may be on the board before its owner hears of it, and a little longer than its job."""
_WAITER_GRACE_SECONDS = 5.0


class Recount:
    """`run` every few seconds. What is odd must be so twice: the sides are not read at one moment, and after
    a pause of this process the answers that tell more may still lie in its reply stream."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._odd_in_queue: set[tuple[str, int]] = set()
        self._odd_on_nodes: set[tuple[str, int]] = set()
        self.healed = 0
        """Slots given back that no live job holds, since start."""

    async def run(self) -> None:
        """Raises `redis.RedisError`."""
        d = self._dispatcher
        # In this order: what has left the queue meanwhile is among the slots.
        waiting, held, lists = await asyncio.gather(
            d.board.waiting(d.mailbox.web), d.board.held(), listing.read(d.pipe)
        )
        gone = await owners.gone(d.pipe, {h.owner for h in held if h.owner and h.owner != d.mailbox.web})
        await self._slots(held, gone)
        await self._queue(waiting, held)
        await self._work(held, lists)

    async def _slots(self, held: list[Held], gone: set[str]) -> None:
        """Give back slots that the board holds for us and we know nothing of, and those of processes that are
        gone; their nodes are told to stop."""
        d = self._dispatcher
        now_ms = time.time() * 1000
        for h in held:
            job = d.jobs.get(h.job)
            ours = h.owner == d.mailbox.web and not (job and job.attempt == h.attempt)
            if (ours and now_ms - h.placed_at_ms > SLOT_GRACE_SECONDS * 1000) or h.owner in gone:
                await d.mailbox.cancel(h.node, h.job, h.attempt)
                if await d.board.release(h.node, h.model, h.job, h.attempt):
                    self.healed += 1
                    log.warning("slot given back job=%s attempt=%d node=%s", h.job, h.attempt, h.node)
                    await heals.note(d.pipe, Heal.SLOT)

    async def _queue(self, waiting: list[Waits], held: list[Held]) -> None:
        """Our jobs that wait and the queues' entries for us are the same."""
        d = self._dispatcher
        entries = {(w.job, w.attempt) for w in waiting}
        known = {(job.id, job.attempt): job for job in d.jobs.values() if _waits(job)}
        on_board = entries | {(h.job, h.attempt) for h in held}
        strangers = entries - known.keys()
        now = time.monotonic()
        forgotten = {
            key
            for key, job in known.items()
            if key not in on_board and now - job.waiting_since > _WAITER_GRACE_SECONDS
        }
        before, self._odd_in_queue = self._odd_in_queue, strangers | forgotten
        for name, attempt in strangers & before:
            job = d.jobs.get(name)
            if (job is None or job.attempt == attempt) and await d.board.leave(name):
                await heals.note(d.pipe, Heal.WAITER)
        for key in forgotten & before:
            job = known[key]
            if _waits(job) and job.attempt == key[1]:  # still so, after all the waiting above
                job.give_up(Lost(interactive.WIRE_LOST, "the queue was lost"))
                await heals.note(d.pipe, Heal.LOST_WAITER)

    async def _work(self, held: list[Held], lists: dict[str, Listing]) -> None:
        """Our jobs that are on a node are what that node has."""
        d = self._dispatcher
        placed_at = {(h.job, h.attempt): h.placed_at_ms / 1000 for h in held}
        before, self._odd_on_nodes = self._odd_on_nodes, set()
        lost = 0
        for job in d.jobs.values():
            if not job.node or job.left_at or job.current.outcome or job.node not in lists:
                continue
            key = (job.id, job.attempt)
            if lists[job.node].lacks(f"{job.id}:{job.attempt}", placed_at.get(key, job.current.placed_at)):
                self._odd_on_nodes.add(key)
                if key in before:
                    log.warning("job=%s attempt=%d is not on node=%s", job.id, job.attempt, job.node)
                    job.give_up(Lost(interactive.WIRE_LOST, "the node does not have it"))
                    lost += 1
        await heals.note(d.pipe, Heal.LOST_WORK, lost)


def _waits(job: InteractiveJob) -> bool:
    return bool(job.attempt) and not job.node and not job.left_at and not job.current.outcome
