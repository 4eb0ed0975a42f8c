"""The counts of the last minute, read again and again: what is over is kept, what is new is fetched."""

from __future__ import annotations

import asyncio

from dashboard.figures import WANTED
from gputorrent.redis import Pipe
from jobs import metrics
from jobs.metrics import STEP_SECONDS, Series

STEPS = 60 // STEP_SECONDS

Counts = dict[Series, int]


async def now(pipe: Pipe) -> float:
    """Redis's clock. Raises `redis.RedisError`."""
    seconds, microseconds = await pipe.send("TIME")
    return int(seconds) + int(microseconds) / 1e6


async def window(pipe: Pipe, number: int) -> Counts:
    """The wanted counts of one window of `STEP_SECONDS`. Raises `redis.RedisError`."""
    found = await metrics.window(pipe, number)
    return {series: count for series, count in found.items() if series[0] in WANTED}


class Recent:
    """Windows of five seconds by number, as far as they can no longer change."""

    def __init__(self) -> None:
        self._over: dict[int, Counts] = {}

    async def read(self, pipe: Pipe) -> tuple[list[Counts], float]:
        """The windows of the last minute, and over how many seconds (60 to 65). Raises `redis.RedisError`."""
        at = await now(pipe)
        current = int(at // STEP_SECONDS)
        numbers = range(current - STEPS, current + 1)
        missing = [n for n in numbers if n not in self._over]
        fetched = dict(zip(missing, await asyncio.gather(*(window(pipe, n) for n in missing)), strict=True))
        known = self._over | fetched
        self._over = {n: known[n] for n in numbers if n != current}
        return [known[n] for n in numbers], 60 + at - current * STEP_SECONDS
