"""The one Redis client of the coordinator, blocking and async.

Everything here raises `redis.exceptions.RedisError`; callers at a border turn it into what their side
understands. The async side has `worker_agent.pipe`, which gathers the commands of one turn of the loop into a
single write: a thousand requests at once share one connection instead of opening a thousand.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import hiredis
import msgspec
import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.retry import Retry

from worker_agent.pipe import ANSWER_SECONDS, Asked, Pipe, refused

__all__ = ["ANSWER_SECONDS", "Pipe", "Script", "Steps", "asynchronous", "blocking", "piped"]

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

    def ask(self, *arguments: Any, late: Callable[[Any], None] | None = None) -> asyncio.Future[Any]:
        """The same, under way at once and without a task. Cancelling the future, or whoever waits for it,
        does not stop the script: what it answers all the same (or the exception) is handed to `late`."""
        return self._pipe.run(self._sha, self._source, *arguments, late=late)

    async def unless_left(self, late: Callable[[Any], None], *arguments: Any) -> Any:
        """As a call. Whoever is cancelled while it waits leaves the answer, whenever it comes, to `late`."""
        asked = self.ask(*arguments, late=late)
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():  # both came in one turn of the loop
                late(asked.exception() or asked.result())
            raise


class Steps:
    """A Lua script that takes many steps in one call, in the order in which they were asked for: what gathers
    until the pipe writes goes out as one. A call alone costs Redis more than most steps do, and a script may
    read for all of its steps together what each of them needs.

    The source defines `verbs`, each a function of a table of arguments (text and numbers; a blob is passed as
    the number of the ARGV it is in, before all others), and it may define `begin` and `finish` for what goes
    before and after all `steps`. A step that fails is refused alone. What was sent is sent again when its
    connection breaks, so a step must change nothing the second time. Of several scripts on one pipe the one
    with the lesser `rank` runs first.
    """

    def __init__(self, pipe: Pipe, source: str, rank: int = 0) -> None:
        self._pipe, self._rank = pipe, rank
        self.source = source = self.whole(source)
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._batch: _Batch | None = None

    async def __call__(self, verb: str, *arguments: Any) -> Any:
        return await self.ask(verb, *arguments)

    def ask(
        self,
        verb: str,
        *arguments: Any,
        blob: bytes | None = None,
        late: Callable[[Any], None] | None = None,
    ) -> asyncio.Future[Any]:
        """One step, under way at once and without a task. Cancelling the future, or whoever waits for it,
        does not stop it: what it answers all the same (or the exception) is handed to `late`."""
        batch = self._batch
        if batch is None or batch.closed or len(batch.steps) >= _MOST_STEPS:
            batch = self._batch = _Batch(self, self._rank)
        future = batch.add(verb, arguments, blob, late)
        if len(batch.steps) == 1:
            self._pipe.carry(batch)
        return future

    async def unless_left(
        self, late: Callable[[Any], None], verb: str, *arguments: Any, blob: bytes | None = None
    ) -> Any:
        """As a call. Whoever is cancelled while it waits leaves the answer, whenever it comes, to `late`."""
        asked = self.ask(verb, *arguments, blob=blob, late=late)
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():  # both came in one turn of the loop
                late(asked.exception() or asked.result())
            raise

    @staticmethod
    def whole(source: str) -> str:
        """What Redis is sent of such a script."""
        return f"{_HEAD}{source}{_TAIL}"

    @staticmethod
    def alone(verb: str, *arguments: Any) -> list[bytes]:
        """The ARGV of one step without a blob, for a blocking client: the answer is a list of one."""
        return [msgspec.msgpack.encode([[verb, *arguments]])]


_HEAD: Final = """
local steps = cmsgpack.unpack(ARGV[1])
local verbs, begin, finish = {}
"""
_TAIL: Final = """
local answers = {}
if begin then begin() end
for i, step in ipairs(steps) do
  local ok, answer = pcall(verbs[table.remove(step, 1)], step)
  if not ok and type(answer) ~= 'table' then answer = redis.error_reply('ERR ' .. tostring(answer)) end
  answers[i] = answer or false
end
if finish then finish() end
return answers
"""


_MOST_STEPS: Final = 256
"""In one call: about 2 ms in which Redis does nothing else."""


class _Batch(Asked):
    """The steps of one call, until it is written; then those who wait for their answers."""

    __slots__ = ("_askers", "_blobs", "_script", "_whole", "closed", "steps")

    def __init__(self, script: Steps, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.closed = False  # written, or refused: nothing joins it any more
        self.steps: list[list[Any]] = []
        self._script, self._whole = script, False
        self._blobs: list[bytes] = []
        self._askers: list[tuple[asyncio.Future[Any], Callable[[Any], None] | None]] = []

    def add(
        self, verb: str, arguments: tuple[Any, ...], blob: bytes | None, late: Callable[[Any], None] | None
    ) -> asyncio.Future[Any]:
        if blob is None:
            self.steps.append([verb, *arguments])
        else:
            self._blobs.append(blob)
            self.steps.append([verb, 1 + len(self._blobs), *arguments])
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._askers.append((future, late))
        return future

    @property
    def wanted(self) -> bool:
        return any(late is not None or not future.done() for future, late in self._askers)

    def packed(self) -> bytes:
        self.closed = True
        steps = msgspec.msgpack.encode(self.steps)
        command: list[Any] = ["EVALSHA", self._script.sha, 0, steps, *self._blobs]
        if self._whole:
            command[:2] = "EVAL", self._script.source
        packed: bytes = hiredis.pack_command(tuple(command))
        return packed

    def answered(self, answer: Any) -> bool:
        if isinstance(answer, NoScriptError) and not self._whole:
            self._whole = True
            return False
        if not isinstance(answer, list) or len(answer) != len(self._askers):
            told = isinstance(answer, Exception)
            self.refuse(answer if told else redis.ResponseError("not an answer for each step"))
            return True
        for (future, late), each in zip(self._askers, answer, strict=True):
            if future.done():
                if late:
                    late(each)
            elif isinstance(each, Exception):
                refused(future, each)
            else:
                future.set_result(each)
        return True

    def refuse(self, error: Exception) -> None:
        self.closed = True
        for future, late in self._askers:
            if not refused(future, error) and late:
                late(error)
