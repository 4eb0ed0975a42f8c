"""The live board in Redis: slots taken and jobs waiting. Each verb is one atomic step of `board.lua`.

A slot is an entry with the attempt's name, never a bare count, so it can be recounted. Raises
`redis.RedisError` throughout; a step asked for twice (an answer was lost) changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from gputorrent.redis import Pipe, Script
from worker_agent.contract import Work, encode

_SOURCE = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Placed:
    node: str


@dataclass(frozen=True, slots=True)
class Waiting:
    position: int  # jobs of the same model before it


@dataclass(frozen=True, slots=True)
class Full:
    waiting: int  # jobs that wait for the model


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


class Board:
    def __init__(self, pipe: Pipe) -> None:
        self._script = Script(pipe, _SOURCE)

    async def reserve(
        self,
        work: Work,
        order: Sequence[str],
        *,
        tenant: str,
        priority: int = 0,
        wait_seconds: float,
        tried: Iterable[str] = (),
        only: Iterable[str] | None = None,
    ) -> Placed | Waiting | Full:
        """Take a slot on the first node of `order` that has one and deliver the work there; else wait.

        A job that waits is never given to a node in `tried`, nor to one that is not in `only` (None: any).
        """
        packed = encode(work)
        answer = await self._script(
            "reserve",
            work.job,
            work.attempt,
            work.lease.hex(),
            work.reply,
            work.model,
            tenant,
            priority,
            packed,
            wait_seconds,
            settings.QUEUE_PER_MODEL,
            settings.QUEUE_TOTAL,
            settings.NODE_BYTES,
            f" {' '.join(tried)} ",
            "" if only is None else f" {' '.join(only)} ",
            *order,
        )
        kind = answer[0]
        if kind == b"placed":
            return Placed(answer[1].decode())
        return Waiting(int(answer[1])) if kind == b"waiting" else Full(int(answer[1]))

    async def release(self, node: str, model: str, job: str, attempt: int) -> bool:
        """Give a slot back; whoever waits gets it in the same step. Returns whether it was held."""
        answer = await self._script("release", node, model, f"{job}:{attempt}", settings.NODE_BYTES)
        return bool(answer[0])

    async def leave(self, job: str) -> bool:
        """Take a waiting job off the board. Returns whether it waited."""
        return bool(await self._script("leave", job))

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

    async def depths(self, models: Sequence[str]) -> tuple[int, dict[str, int]]:
        """How many jobs wait in all, and for each model."""
        total, *each = await self._script("depths", *models)
        return int(total), dict(zip(models, map(int, each), strict=True))

    async def position(self, job: str) -> int | None:
        """Jobs before this one in its queue; None if it does not wait."""
        at = int(await self._script("position", job))
        return at if at >= 0 else None

    async def overdue(self) -> list[str]:
        return [job.decode() for job in await self._script("overdue")]


def _held(place: bytes, ref: bytes, entry: bytes) -> Held:
    node, _, model = place.decode().partition("/")
    job, _, attempt = ref.decode().partition(":")
    lease, owner, _, placed_at = entry.decode().split(" ")
    return Held(node, model, job, int(attempt), bytes.fromhex(lease), owner, int(placed_at))
