"""What work needs of whatever serves a model: an engine of ours, or one that already ran."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from worker_agent.contract import Outcome, Work
from worker_agent.engine_client import EngineClient
from worker_agent.meter import Meter

_UNFINISHED = {
    Outcome.CANCELLED,
    Outcome.STALLED,
    Outcome.FIRST_TOKEN_TIMEOUT,
    Outcome.TOTAL_TIMEOUT,
    Outcome.UNDELIVERABLE,
}
"""Ends that close the engine's connection while it still works on the request."""


_PAUSE_SECONDS = 5.0


class Pulse:
    """The signs of life of one engine, and what makes one doubt it. Times in monotonic seconds."""

    def __init__(self) -> None:
        self.meter = Meter(time.monotonic)
        self.in_flight = 0
        self.last_used = self.idle_since = self.busy_since = self._sign = time.monotonic()
        self.unconfirmed_abort = False  # a request was cut off; the engine has not shown that it let go
        self.overdue: float | None = None  # the limit that a request has waited out
        self._doubt = asyncio.Event()

    @property
    def last_sign(self) -> float:
        """When the engine last showed that it does something."""
        return max(self._sign, self.meter.last_sign)

    def sign(self) -> None:
        """It lives."""
        self._sign = time.monotonic()

    def fresh(self) -> None:
        """A new engine: nothing that was known of the old one holds."""
        self.unconfirmed_abort, self.overdue = False, None
        self.sign()
        self.busy_since = self._sign

    def began(self) -> None:
        """A request has gone to it."""
        now = time.monotonic()
        # That it was silent while it had nothing to do means nothing. But callers who give up and ask again
        # at once are no pause, and their asking is no sign of life: it would hide a hung engine for ever.
        if self.in_flight == 0 and now - self.idle_since > _PAUSE_SECONDS:
            self.busy_since = now
        self.in_flight += 1
        self.last_used = now

    def ended(self, work: Work, outcome: Outcome | None) -> None:
        """A request is over; `outcome` is None if it was answered."""
        self.in_flight -= 1
        self.last_used = self.idle_since = time.monotonic()
        if outcome is None:
            self.sign()
        elif outcome in _UNFINISHED:
            self.unconfirmed_abort = True
        if outcome in {Outcome.STALLED, Outcome.FIRST_TOKEN_TIMEOUT}:
            stalled = outcome is Outcome.STALLED
            self.overdue = work.stall_seconds if stalled else work.first_token_seconds
            self._doubt.set()

    async def doubted(self, seconds: float) -> None:
        """Wait until a request has waited in vain, but at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._doubt.wait()
        except TimeoutError:
            pass
        self._doubt.clear()


class Translation(Protocol):
    """Between the names a caller knows and those of a foreign server, for one request."""

    def request(self, body: bytes) -> bytes:
        """The body as the server wants it."""

    def answer(self, body: bytes) -> bytes:
        """A whole answer as the caller is to see it."""

    def events(self, events: bytes) -> bytes:
        """Whole server-sent events as the caller is to see them."""


class Server(Protocol):
    """Serves one model now."""

    slots: int
    client: EngineClient | None
    pulse: Pulse

    def translation(self, work: Work) -> Translation | None:
        """None where everything passes as it is."""
