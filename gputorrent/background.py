"""Background tasks: how they take turns, and how they end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

_PHASE = random.randrange(1000) / 1000  # noqa: S311 - processes of one host take turns
"""In whole milliseconds, as uvloop's clock is."""


async def pause(seconds: float) -> None:
    """Wait for about so long (half as long again at most), until the next of the moments that all pauses of
    that length have in common: what a process does again and again falls into the same turns of its loop, and
    costs one wake-up and one trip to Redis where it would cost one for each task."""
    await asyncio.sleep(remaining(asyncio.get_running_loop().time(), seconds))


def remaining(now: float, seconds: float) -> float:
    """Seconds until the next of these moments that is at least half of the length away."""
    left = seconds - (now - _PHASE) % seconds
    return left if left >= seconds / 2 else left + seconds


async def end(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks and wait until they have ended; what they raise is dropped.

    Cancelled again and again: redis-py 8.1 loses about one cancellation in eight that arrives together with
    an answer.
    """
    pending = {task for task in tasks if task is not None and not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)
