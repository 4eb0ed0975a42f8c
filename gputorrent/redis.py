"""The one Redis client of the coordinator, blocking and async.

Everything here raises `redis.exceptions.RedisError`; callers at a border turn it into what their side
understands. The async side has `worker_agent.pipe`, which gathers the commands of one turn of the loop into a
single write: a thousand requests at once share one connection instead of opening a thousand.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from worker_agent.pipe import ANSWER_SECONDS, Pipe

__all__ = ["ANSWER_SECONDS", "Pipe", "Script", "asynchronous", "blocking", "piped"]

# A connection that was cut while idle is made anew. After a time-out there is no second try: a frozen server
# would cost every caller twice as long.
_WORTH_A_RETRY = (RedisConnectionError,)


@functools.cache
def blocking() -> redis.Redis:
    """The blocking client of this process (commands, tasks, admin, agents' doors)."""
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2, _WORTH_A_RETRY),
        health_check_interval=30,
        client_name="gputorrent-blocking",
    )


def asynchronous(*, answer_seconds: float | None = ANSWER_SECONDS) -> redis.asyncio.Redis:
    """A new async client. It belongs to the event loop that first uses it; close it with `aclose`."""
    return redis.asyncio.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=answer_seconds,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 1, _WORTH_A_RETRY),
        client_name="gputorrent-web",
    )


@asynccontextmanager
async def piped() -> AsyncIterator[Pipe]:
    """A `Pipe` of its own, for as long as the block lasts: for tasks, whose event loops are short."""
    pipe = Pipe(asynchronous())
    try:
        yield pipe
    finally:
        await pipe.close()


class Script:
    """A Lua script called by its hash over a `Pipe`; loaded again when Redis has forgotten it."""

    def __init__(self, pipe: Pipe, source: str) -> None:
        self._pipe = pipe
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *arguments: Any) -> Any:
        """Run with no KEYS: our scripts build their keys, so Redis Cluster is not supported."""
        return await self.ask(*arguments)

    def ask(self, *arguments: Any) -> asyncio.Future[Any]:
        """The same, under way at once and without a task. Cancelling the future, or whoever waits for it,
        does not stop the script."""
        return self._pipe.run(self._sha, self._source, *arguments)
