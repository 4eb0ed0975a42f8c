"""What one web process does aside: nobody waits for the answer, and a failure is healed by the recount."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import redis

from gputorrent.steps import Heard

log = logging.getLogger(__name__)


class Effects:
    """Call it with what is to be done. Futures cost nothing more; a coroutine becomes a task."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Future[Any]] = set()
        self._told = 0  # without a future
        self._all_heard: asyncio.Future[None] | None = None  # if that is waited for

    def __call__(self, effect: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> asyncio.Future[Any]:
        done = asyncio.ensure_future(effect)
        self._under_way.add(done)
        done.add_done_callback(self._over)
        return done

    def hears(self) -> Heard:
        """What is to hear the answer of something that is under way now, or the exception; once."""
        self._told += 1
        return self._hear

    async def over(self, seconds: float) -> None:
        """Wait until nothing is under way, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._under_way:
                    await asyncio.wait(self._under_way)
                while self._told:
                    self._all_heard = asyncio.get_running_loop().create_future()
                    await self._all_heard

    def _hear(self, answer: Any) -> None:
        self._told -= 1
        if not self._told and self._all_heard is not None and not self._all_heard.done():
            self._all_heard.set_result(None)
        if isinstance(answer, Exception):
            self._failed(answer)

    def _over(self, done: asyncio.Future[Any]) -> None:
        self._under_way.discard(done)
        if not done.cancelled() and (error := done.exception()):
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, redis.RedisError):
            log.warning("redis unavailable error=%s", type(error).__name__)
        else:
            log.error("an effect failed", exc_info=error)
