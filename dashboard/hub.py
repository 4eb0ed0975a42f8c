"""What one web process does for those of its visitors who watch the dashboard; nothing while nobody does.

One process, elected among those with visitors, makes the state of the whole cluster and leaves it in Redis;
all draw from it. However many watch, the ledger is asked once each round.

    gt:dashboard:state          the last state, MessagePack; expires
    gt:dashboard:state:version  a random word, new with each state
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import redis

from dashboard import collecting, rows, state
from dashboard.collecting import Cards
from dashboard.election import Election
from dashboard.recent import Recent
from dashboard.rendering import Rendered, Renderer
from dashboard.rows import Rows
from dashboard.selecting import View
from dashboard.state import State
from gputorrent import background, ledger
from jobs.dispatch import Dispatcher

log = logging.getLogger(__name__)

STATE: Final = "dashboard"
"""Where the ASGI server's state has the `Hub`."""
_PUBLISHED, _VERSION = "gt:dashboard:state", "gt:dashboard:state:version"
_KEPT_MS = 10_000
_LOOK_SECONDS = 0.25
_ROUND_SECONDS = 0.5
_SLOWEST_SECONDS = 2.0
_WHOLE_SECONDS = 10.0  # how often rows are read whose node has not changed: somebody may edit them in place
_SHARE = 6  # rounds take at most one part in so many of a core, unless even the slowest take more


class Visitor:
    """One open page: what it wants to see, and what there is to see. `changed` is set with each state."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.latest = Rendered()
        self.changed = asyncio.Event()

    def show(self, rendered: Rendered) -> None:
        self.latest = rendered
        self.changed.set()


class Hub:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._election = Election(dispatcher.pipe, dispatcher.mailbox.web)
        self._visitors: set[Visitor] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._renderer, self._recent, self._cards = Renderer(), Recent(), Cards()
        self._rows: Rows | None = None
        self._version: bytes | None = None
        self._begun = self._spent = self._next_round = self._whole_from = 0.0
        self._drawn: Mapping[View, Rendered] = {}
        self.state: State | None = None
        """The last one that is known here."""

    def join(self, visitor: Visitor) -> None:
        """It is shown the state from now on."""
        self._visitors.add(visitor)
        self.look_again()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="dashboard.hub")

    def leave(self, visitor: Visitor) -> None:
        self._visitors.discard(visitor)
        self._wake.set()

    def look_again(self) -> None:
        """A visitor has come, or wants to see something else: it is shown without waiting for news."""
        self._wake.set()

    @property
    def visitors(self) -> int:
        return len(self._visitors)

    async def stop(self) -> None:
        await background.end([self._task])

    # -- the loop ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while self._visitors:
                self._wake.clear()
                try:
                    await self.look()
                except Exception:  # the next look may go well, and visitors see how old the page is
                    log.exception("dashboard round failed")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
        finally:
            with contextlib.suppress(redis.RedisError):
                await self._election.resign()

    async def look(self) -> None:
        """Make or fetch the state, and show it to those who have not seen it."""
        await self._look_for_news()
        if self.state is None:
            return
        at = self.state.at
        behind = [v for v in self._visitors if v.latest.at != at or v.latest is not self._drawn.get(v.view)]
        if not behind:
            return
        views = {v.view for v in self._visitors}
        drawn, seconds = await asyncio.to_thread(_timed, self._renderer.render, self.state, views)
        self._rest(seconds)
        self._drawn = drawn
        for visitor in behind:
            if visitor.view in drawn:  # it may have changed its mind meanwhile
                visitor.show(drawn[visitor.view])

    async def _look_for_news(self) -> None:
        try:
            if not await self._election.hold():
                await self._fetch()
                return
        except redis.RedisError:
            pass  # then everybody looks for himself, and says what is away
        now = time.monotonic()
        if now < self._next_round:
            return
        self._begun, self._spent, self._next_round = now, 0.0, now + _ROUND_SECONDS
        await self._collect()

    async def _fetch(self) -> None:
        pipe = self._dispatcher.pipe
        version = await pipe.send("GET", _VERSION)
        if version is None or version == self._version:
            return
        packed = await pipe.send("GET", _PUBLISHED)
        if packed is None:
            return
        self._version = version
        with contextlib.suppress(msgspec.MsgspecError):  # another version of this program leads, not we
            self.state = state.decode(packed)

    async def _collect(self) -> None:
        d = self._dispatcher
        wire = await collecting.ask(d.pipe, d.outlook.snapshot, self._recent)

        now = time.monotonic()
        whole = now >= self._whole_from
        if whole:
            self._whole_from = now + _WHOLE_SECONDS

        def ask(before: Rows | None) -> Rows:
            return rows.read(None if whole else before)

        def make(read: Callable[[Rows | None], Rows]) -> tuple[State, Rows, bytes]:
            made, kept = collecting.build(wire, read, self._rows, self._tokens, self._cards)
            return made, kept, state.encode(made)

        try:
            made, seconds = await ledger.ask(_timed, make, ask)
        except ledger.LedgerTimeout:
            # It says nothing at all: what it said last, without asking.
            made, seconds = await asyncio.to_thread(_timed, make, _away)
        self.state, self._rows, packed = made
        self._rest(seconds)
        with contextlib.suppress(redis.RedisError):
            await asyncio.gather(
                d.pipe.send("SET", _PUBLISHED, packed, "PX", _KEPT_MS),
                d.pipe.send("SET", _VERSION, secrets.token_hex(8), "PX", _KEPT_MS),
            )

    def _rest(self, seconds: float) -> None:
        """So many seconds of a core were spent: the next round may have to wait for that."""
        self._spent += seconds
        pause = min(max(_ROUND_SECONDS, _SHARE * self._spent), _SLOWEST_SECONDS)
        self._next_round = self._begun + pause

    def _tokens(self, job_id: str) -> int | None:
        """Of a stream whose caller waits on this process."""
        job = self._dispatcher.jobs.get(job_id)
        return job.tries[-1].streamed if job and job.tries and job.request.stream else None


def _timed(call: Any, *arguments: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds of this thread's CPU that it took."""
    begun = time.thread_time()
    return call(*arguments), time.thread_time() - begun


def _away(before: Rows | None) -> Rows:
    raise ledger.LedgerTimeout
