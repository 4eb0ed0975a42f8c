"""What one web process does aside: nobody waits for the answer, and a failure is healed by the recount."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import redis

log = logging.getLogger(__name__)


class Effects:
    """Call it with what is to be done. Futures cost nothing more; a coroutine becomes a task."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Future[Any]] = set()

    def __call__(self, effect: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> asyncio.Future[Any]:
        done = asyncio.ensure_future(effect)
        self._under_way.add(done)
        done.add_done_callback(self._over)
        return done

    async def over(self, seconds: float) -> None:
        """Wait until nothing is under way, at most so long."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)

    def _over(self, done: asyncio.Future[Any]) -> None:
        self._under_way.discard(done)
        if done.cancelled() or not (error := done.exception()):
            return
        if isinstance(error, redis.RedisError):
            log.warning("redis unavailable error=%s", type(error).__name__)
        else:
            log.error("an effect failed", exc_info=error)
