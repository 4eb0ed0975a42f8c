"""What a web process looks after, a few times a second: its snapshot of the nodes, its jobs' limits, its
slots on the board, and whether Redis still holds what it should.

Findings become events of the jobs concerned; nothing here answers a caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from gputorrent import background
from jobs import interactive, routing
from jobs.dispatch import Dispatcher
from jobs.interactive import InteractiveJob, Lost
from jobs.recount import Recount
from jobs.vitals import Vitals
from nodes import registry
from worker_agent.contract import Outcome

log = logging.getLogger(__name__)

_STEP_SECONDS = 0.25
_PAUSED_SECONDS = 2.0
_ABANDONED_SECONDS = 5.0
_RECOUNT_SECONDS = 5.0
_NONE: frozenset[str] = frozenset()


_Decisions = dict[tuple[str, frozenset[str], frozenset[str] | None, int], routing.Decision]
"""What routing says for a model and the nodes tried, within one look: thousands may wait for the same."""


class Watch:
    """Owns the loop; `step` and `recount` are what it does, and what tests call."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._tasks: list[asyncio.Task[None]] = []
        self._trust_leases_from = 0.0
        self._missing: dict[str, int] = {}
        self._emptied = False
        self._away = False
        self._recount = Recount(dispatcher)
        self.vitals = Vitals(dispatcher)

    async def start(self) -> None:
        await self.refresh()
        await self.vitals.publish()
        self._tasks = [
            asyncio.create_task(self._forever(self.refresh, settings.SNAPSHOT_SECONDS), name="watch.refresh"),
            asyncio.create_task(self._look_forever(), name="watch.look"),
            asyncio.create_task(self._forever(self.recount, _RECOUNT_SECONDS), name="watch.recount"),
            asyncio.create_task(self._forever(self._dispatcher.metrics.flush, 1.0), name="watch.metrics"),
            asyncio.create_task(self._forever(self.vitals.publish, 5.0), name="watch.vitals"),
        ]

    async def stop(self) -> None:
        await background.end(self._tasks)

    async def _forever(self, step: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await background.pause(seconds)
            try:
                await step()
            except redis.RedisError as e:
                log.warning("redis unavailable error=%s", type(e).__name__)
            except Exception:  # the watch must survive whatever one look runs into
                log.exception("watch step failed")

    async def _look_forever(self) -> None:
        before = time.monotonic()
        while True:
            await background.pause(_STEP_SECONDS)
            now = time.monotonic()
            if now - before > _PAUSED_SECONDS:
                # We were stopped ourselves: what we know of leases is old, and callers' limits did not run.
                log.warning("paused for %.1f s", now - before)
                self._trust_leases_from = now + settings.LEASE_SECONDS
            before = now
            try:
                self.look(now)
            except Exception:
                log.exception("watch step failed")

    # -- the snapshot --------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Fetch the snapshot and the loads; offer new capacity to those who wait."""
        d, asked = self._dispatcher, time.monotonic()
        try:
            changed = await d.outlook.refresh(d.pipe, d.board, d.mailbox.web)
        except redis.RedisError:
            self._away = True
            raise
        now = time.monotonic()
        if self._away or now - asked > settings.LEASE_SECONDS - settings.LEASE_REFRESH_SECONDS:
            # Leases ran out while Redis did not answer, and agents need a moment to renew theirs.
            self._away = False
            self._trust_leases_from = max(self._trust_leases_from, now + 2 * settings.LEASE_SECONDS)
        emptied_before, self._emptied = self._emptied, d.outlook.snapshot.redis_was_emptied
        if self._emptied:
            if not emptied_before:
                await self._start_over()
            await self._heal()
            changed |= await d.outlook.refresh_nodes(d.pipe)
        # No release tells that a breaker's time is over, or that its place has become the last.
        places = set(d.outlook.breakers)
        for node in map(d.outlook.snapshot.nodes.get, changed):
            if node is not None and node.takes_work:
                places |= {f"{node.id}/{model.name}" for model in node.models}
        if places:
            await d.board.fill(places)

    async def _start_over(self) -> None:
        """Redis came back empty: each process sees to its own jobs, once."""
        d = self._dispatcher
        log.warning("redis holds nothing of ours: rebuilding")
        self._trust_leases_from = time.monotonic() + 2 * settings.LEASE_SECONDS
        await d.mailbox.open()
        for job in list(d.jobs.values()):
            # Its slot, its place in the queue, or its work in an inbox is gone. What has begun to answer may
            # still come whole (the sequence numbers tell); anything else is placed again.
            if not job.left_at and job.attempt and not job.first_byte_at:
                job.give_up(Lost(interactive.WIRE_LOST, "the queue was lost"))

    async def _heal(self) -> None:
        """One process rebuilds the registry; if it cannot, another tries after 5 s."""
        d = self._dispatcher
        if await d.pipe.send("SET", "gt:healing", d.mailbox.web, "NX", "PX", 5000):
            try:
                await asyncio.to_thread(_rebuild)
            except (DatabaseError, InterfaceError) as e:
                log.warning("ledger unavailable error=%s", type(e).__name__)

    # -- limits --------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Find what is overdue or lost among the jobs of this process."""
        self._dispatcher.tails.expire(now)
        leases = now >= self._trust_leases_from
        leased = self._dispatcher.outlook.snapshot.leased
        nodes = {job.node for job in self._dispatcher.jobs.values() if job.node}
        # Three times in a row, so that an unlucky look (a lease that expires while it is renewed) is not
        # taken for a death.
        self._missing = {n: self._missing.get(n, 0) + 1 for n in nodes if n not in leased} if leases else {}
        dead = {n for n, times in self._missing.items() if times >= 3}
        decisions: _Decisions = {}
        for job in list(self._dispatcher.jobs.values()):
            self._look_at(job, now, dead, decisions)

    def _look_at(self, job: InteractiveJob, now: float, dead: set[str], decisions: _Decisions) -> None:
        if job.left_at:
            self._dispatcher.stop_left(job)
            if job.current.outcome or now - job.left_at > _ABANDONED_SECONDS or job.node in dead:
                self._dispatcher.clear_abandoned(job)
        elif not job.attempt:
            return
        elif job.current.outcome:  # between two attempts, or its end is on the way to the caller
            self._dispatcher.settle(job)
        elif not job.node:
            self._look_at_waiting(job, now, decisions)
        elif job.node in dead:
            job.give_up(Lost(interactive.NODE_LOST, "the node has gone silent"))
        elif self._cut_off(job, now):
            job.give_up(Lost(interactive.NODE_LOST, "the node was revoked"))
        elif self._restarted(job):
            job.give_up(Lost(interactive.NODE_LOST, "the node has restarted"))
        elif now - job.placed_since > settings.TOTAL_SECONDS + 1:
            # The node ends it a little earlier, unless its agent is frozen.
            job.give_up(Lost(Outcome.TOTAL_TIMEOUT, "the answer took too long"))
        elif not job.first_byte_at and now - job.placed_since > settings.FIRST_TOKEN_SECONDS + 1:
            # Likewise; a whole answer comes as one, at the end.
            if job.request.stream:
                job.give_up(Lost(Outcome.FIRST_TOKEN_TIMEOUT, "no token came in time"))
        elif job.first_byte_at and now - job.heard_at > settings.STALL_SECONDS + 1:
            job.give_up(Lost(Outcome.STALLED, "the answer stopped coming"))

    def _look_at_waiting(self, job: InteractiveJob, now: float, decisions: _Decisions) -> None:
        d, model, waited = self._dispatcher, job.request.model, now - job.waiting_since
        # What thousands wait for alike is decided once; contexts are alike to within a thousand tokens.
        request = job.request
        tried = frozenset(job.tried) if job.attempt > 1 else _NONE
        alike = (model, tried, request.only, request.tokens_wanted // 1024)
        if alike not in decisions:
            decisions[alike] = d.outlook.decide(request, tried)
        decision = decisions[alike]
        if isinstance(decision, routing.Load):
            d.wishes.ask(decision.node, model)
        loading = isinstance(decision, routing.Load | routing.Wait)
        if waited > job.wait_limit:
            if loading:
                message = f"{model} was not loaded within {job.wait_limit:g} s"
                d.stop_waiting(job, Lost(interactive.LOAD_TIMEOUT, message))
            else:
                message = f"no slot became free within {job.wait_limit:g} s"
                d.stop_waiting(job, Lost(interactive.QUEUE_TIMEOUT, message))
        elif isinstance(decision, routing.Refuse) and waited > settings.LEASE_SECONDS:
            # Not at once: a node that restarts is away for a moment.
            error = d.outlook.refusal(model, decision)
            d.stop_waiting(job, Lost(interactive.UNSERVABLE, str(error), error))

    def _cut_off(self, job: InteractiveJob, now: float) -> bool:
        """Whether the registry no longer has the node. One that is new to us is given time to be seen."""
        snapshot = self._dispatcher.outlook.snapshot
        seen = job.node in snapshot.nodes or snapshot.redis_was_emptied
        return not seen and now - job.placed_since > 4 * settings.SNAPSHOT_SECONDS

    def _restarted(self, job: InteractiveJob) -> bool:
        view, this = self._dispatcher.outlook.snapshot.nodes.get(job.node), job.current
        if view is None:
            return False
        if not this.incarnation:  # placed by the board, which does not know incarnations
            this.incarnation = view.incarnation
        return view.incarnation > this.incarnation

    # -- slots ---------------------------------------------------------------------------------------

    async def recount(self) -> None:
        """Compare our jobs with the board and the agents' lists (see `jobs.recount`)."""
        await self._recount.run()

    @property
    def healed(self) -> int:
        """Slots found on the board that no live job holds, since start."""
        return self._recount.healed


def _rebuild() -> None:
    close_old_connections()
    try:
        registry.heal()
    finally:
        close_old_connections()
