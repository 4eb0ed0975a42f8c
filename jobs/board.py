"""The live board in Redis: slots taken and jobs waiting. Each verb is one atomic step of `board.lua`.

A slot is an entry with the attempt's name, never a bare count, so it can be recounted. Raises
`redis.RedisError` throughout; a step asked for twice (an answer was lost) changes nothing the second time.
What an attempt's end says of its place, and of the request, is part of its release (see `jobs.breaker`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from gputorrent.chosen import settings
from gputorrent.redis import Pipe
from gputorrent.steps import Heard, Steps
from jobs import breaker
from jobs.breaker import Breaker, Verdict
from jobs.errors import NotPermitted
from jobs.poison import Strikes
from worker_agent.contract import Work, encode


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_SOURCE = f"{_part('quick.lua')}define = function()\n{_part('breaker.lua')}{_part('board.lua')}end\n"

Proof = tuple[str, str] | None
"""What a step depends on: a hash in Redis, and a field that it must have."""

_PAGE = 500
"""Of those that wait, how many one step looks through: about 2 ms in which Redis does nothing else."""


class Placed(Struct, frozen=True, gc=False):
    node: str


@dataclass(frozen=True, slots=True)
class Waiting:
    position: int  # jobs of the same model before it
    interval: float | None = field(default=None, compare=False)
    """Mean seconds between two that leave the queue; None while that is unknown."""


class Bound(StrEnum):
    """What keeps a job from waiting."""

    SLOTS = "slots"  # it does not want to
    MODEL = "model"
    TOTAL = "total"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Full:
    waiting: int  # jobs that wait for the model
    interval: float | None = field(default=None, compare=False)
    bound: Bound = field(default=Bound.MODEL, compare=False)


@dataclass(frozen=True, slots=True)
class Released:
    """True if the slot was held. `strikes`: engines the request has brought down, where that was asked."""

    held: bool
    strikes: int = 0

    def __bool__(self) -> bool:
        return self.held


@dataclass(frozen=True, slots=True)
class Look:
    """What each process needs to see again and again."""

    loads: dict[str, int]  # attempts in flight for each ``node/model``
    breakers: dict[str, Breaker]  # by ``node/model``, those that are not closed
    strikes: dict[str, Strikes]  # by fingerprint


@dataclass(frozen=True, slots=True)
class Held:
    """One attempt that holds a slot. `owner` is the web process that waits, empty for asynchronous jobs."""

    node: str
    model: str
    job: str
    attempt: int
    lease: bytes
    owner: str
    placed_at_ms: int


@dataclass(frozen=True, slots=True)
class Waits:
    """One attempt that waits for a slot. `owner` as in `Held`."""

    job: str
    attempt: int
    owner: str


class Board:
    def __init__(self, pipe: Pipe) -> None:
        self._script = Steps(pipe, _SOURCE, rank=1)  # behind `api.limits`, whose permits are proofs

    async def reserve(
        self,
        work: Work,
        order: Sequence[str],
        *,
        tenant: str,
        priority: int = 0,
        wait_seconds: float,
        tried: Iterable[str] = (),
        only: frozenset[str] | None = None,
        others: Callable[[], Sequence[str]] | None = None,
        proof: Proof = None,
        late: Callable[[Placed | Waiting | Full], None] = lambda answer: None,
    ) -> Placed | Waiting | Full:
        """Take a slot on the first node of `order` that has one and deliver the work there; else wait.

        A job that waits is never given to a node in `tried`, nor to one that is not in `only` (None: any).
        `others` tells the nodes that come after those of `order`, where there are more: they are asked for
        when none of these has a free slot, and then a second step looks at all.
        With a `proof` nothing is done where that does not hold: raises `NotPermitted`.
        `late` hears the answer if whoever asked was cancelled meanwhile: what was done must still be undone.

        Asynchronous jobs may fill half of each bound only: their queue is the ledger, and callers who wait
        must find room.
        """
        packed = encode(work)
        per_model, total, per_key = bounds = _bounds()
        if not work.reply:
            per_model, total, per_key = (-(-bound // 2) for bound in bounds)
        given = (
            work.job,
            work.attempt,
            work.lease.hex(),
            work.reply,
            work.model,
            tenant,
            priority,
            wait_seconds,
            per_model,
            total,
            per_key,
            settings.NODE_BYTES,
            f" {' '.join(tried)} ",
            "" if only is None else _listed(only),
        )
        proven = proof or ("", "")

        def heard(told: Any) -> None:
            if not isinstance(told, Exception) and told[0] not in {b"more", b"unproven"}:
                late(_reserved(told))

        ask = self._script.unless_left
        few = int(others is not None)
        answer = await ask(heard, "reserve", *given, *proven, few, *order, blob=packed)
        if answer[0] == b"more" and others:
            answer = await ask(heard, "reserve", *given, *proven, 0, *order, *others(), blob=packed)
        if answer[0] == b"unproven":
            raise NotPermitted
        return _reserved(answer)

    async def release(
        self,
        node: str,
        model: str,
        job: str,
        attempt: int,
        verdict: Verdict = Verdict.NOTHING,
        fingerprint: str = "",
    ) -> Released:
        """Give a slot back; whoever waits gets it in the same step.

        The verdict counts for the place's breaker. With a fingerprint, a fault is a strike on that request,
        and a success clears its strikes.
        """
        return released(await self.release_soon(node, model, job, attempt, verdict, fingerprint))

    def release_soon(
        self, node: str, model: str, job: str, attempt: int, verdict: Verdict, fingerprint: str
    ) -> asyncio.Future[Any]:
        """The same, under way at once; what the future gives, `released` can read."""
        return self._script.ask("release", *_release(node, model, job, attempt, verdict, fingerprint))

    def give_back(
        self, node: str, model: str, job: str, attempt: int, verdict: Verdict, *, heard: Heard
    ) -> None:
        """The same for who does not wait for it, nor asks for strikes."""
        self._script.tell("release", *_release(node, model, job, attempt, verdict), heard=heard)

    async def leave(self, job: str) -> bool:
        """Take a waiting job off the board. Returns whether it waited."""
        return bool(await self.leave_soon(job))

    def leave_soon(self, job: str) -> asyncio.Future[Any]:
        """The same, under way at once: before anything that is asked after it."""
        return self._script.ask("leave", job)

    async def waiting(self, owner: str = "*") -> list[Waits]:
        """Attempts of one owner that wait; everybody's without one. Not one step: who comes or goes meanwhile
        may be among them or not."""
        found: dict[bytes, Waits] = {}
        at = "-inf"
        while at:
            page, *flat = await self._script("waiting", owner, at, _PAGE)
            at = page.decode()
            found |= {flat[i]: _waits(*flat[i : i + 3]) for i in range(0, len(flat), 3)}
        return list(found.values())

    async def prune(self, models: Sequence[str]) -> int:
        """Drop what belongs to no waiting job of these models and to no slot, and count the bytes under way
        anew. Returns how much was wrong."""
        wrong = 0
        for verb, *of in [("prune_waiting",), *(("prune_queue", model) for model in models)]:
            at = 0 if of else "-inf"
            while at != "":
                page, found = await self._script(verb, *of, at, _PAGE)
                at = page.decode() if isinstance(page, bytes) else page
                wrong += int(found)
        return wrong + int(await self._script("prune_places"))

    async def fill(self, places: Iterable[str]) -> int:
        """Offer places (``node/model``) that may have new capacity to those who wait."""
        return int(await self._script("fill", settings.NODE_BYTES, *places))

    async def held(self) -> list[Held]:
        flat: list[bytes] = await self._script("held")
        return [_held(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

    async def loads(self) -> dict[str, int]:
        """Attempts in flight for each ``node/model``."""
        flat: list[Any] = await self._script("loads")
        return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}

    async def breakers(self) -> list[Breaker]:
        """Those that are not closed."""
        return list(_breakers(await self._script("breakers")).values())

    async def look(self) -> Look:
        """Loads, breakers and strikes, in one step."""
        loads, breakers, strikes = await self._script("look")
        now = time.monotonic()
        return Look(
            {place.decode(): int(n) for place, n in zip(loads[::2], loads[1::2], strict=True)},
            _breakers(breakers),
            {
                strikes[i].decode(): Strikes(int(strikes[i + 1]), now + strikes[i + 2] / 1000)
                for i in range(0, len(strikes), 3)
            },
        )

    async def depths(self, models: Sequence[str]) -> tuple[int, dict[str, int]]:
        """How many jobs wait in all, and for each model."""
        total, *each = await self._script("depths", *models)
        return int(total), dict(zip(models, map(int, each), strict=True))

    async def position(self, job: str) -> int | None:
        """Jobs before this one in its queue; None if it does not wait."""
        waits = await self.estimate(job)
        return waits[0] if waits else None

    async def estimate(self, job: str) -> tuple[int, float | None] | None:
        """Jobs before this one in its queue, and the seconds until it is placed at the rate at which the
        queue drains (None while that is unknown); None if it does not wait. Others may still overtake it.
        """
        at, interval = await self._script("position", job)
        each = _seconds(interval)
        return (int(at), each and (int(at) + 1) * each) if at >= 0 else None

    async def overdue(self) -> list[str]:
        return [job.decode() for job in await self._script("overdue")]


def _release(
    node: str, model: str, job: str, attempt: int, verdict: Verdict, fingerprint: str = ""
) -> tuple[Any, ...]:
    usual = node, model, f"{job}:{attempt}", settings.NODE_BYTES, verdict, fingerprint
    return usual if verdict in {Verdict.NOTHING, Verdict.OK} else (*usual, *_limits())


def released(answer: Any) -> Released:
    """What `Board.release_soon` was answered."""
    return Released(bool(answer[0]), int(answer[2]))


def _reserved(answer: Any) -> Placed | Waiting | Full:
    kind = answer[0]
    if kind == b"placed":
        return Placed(answer[1].decode())
    if kind == b"waiting":
        return Waiting(int(answer[1]), _seconds(answer[2]))
    return Full(int(answer[1]), _seconds(answer[2]), Bound(answer[3].decode()))


@lru_cache(maxsize=64)
def _listed(nodes: frozenset[str]) -> str:
    """The nodes that a key's prompts may go to: the same for all of its requests, and perhaps many."""
    return f" {' '.join(nodes)} "


def _bounds() -> tuple[int, int, int]:
    return settings.QUEUE_PER_MODEL, settings.QUEUE_TOTAL, settings.QUEUE_PER_KEY


def _limits() -> tuple[int, ...]:
    return (
        settings.BREAKER_FAULTS,
        int(settings.BREAKER_WINDOW_SECONDS * 1000),
        int(settings.BREAKER_OPEN_SECONDS * 1000),
        int(settings.BREAKER_LONGEST_SECONDS * 1000),
        int(settings.HOLD_OFF_SECONDS * 1000),
    )


def _seconds(milliseconds: bytes) -> float | None:
    return float(milliseconds) / 1000 if milliseconds else None


def _breakers(flat: list[Any]) -> dict[str, Breaker]:
    found = (
        breaker.read(flat[i].decode(), flat[i + 1].decode(), flat[i + 2]) for i in range(0, len(flat), 3)
    )
    return {b.place: b for b in found}


def _waits(job: bytes, ref: bytes, owner: bytes) -> Waits:
    return Waits(job.decode(), int(ref.rpartition(b":")[2]), owner.decode())


def _held(place: bytes, ref: bytes, entry: bytes) -> Held:
    node, _, model = place.decode().partition("/")
    job, _, attempt = ref.decode().partition(":")
    lease, owner, _, placed_at, *_ = entry.decode().split(" ")
    return Held(node, model, job, int(attempt), bytes.fromhex(lease), owner, int(placed_at))
