"""Lua scripts of many steps: what many requests ask of Redis in the same moment is one call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Final

import hiredis
import msgspec
import redis
from redis.exceptions import NoScriptError

from worker_agent.pipe import Asked, Pipe, refused

encode = msgspec.msgpack.Encoder().encode

Heard = Callable[[Any], None]
"""Hears an answer, or the exception in its place."""
_Asker = tuple[asyncio.Future[Any] | None, Heard | None]


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
        late: Heard | None = None,
    ) -> asyncio.Future[Any]:
        """One step, under way at once and without a task. Cancelling the future, or whoever waits for it,
        does not stop it: what it answers all the same (or the exception) is handed to `late`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._add(verb, arguments, blob, (future, late))
        return future

    def tell(self, verb: str, *arguments: Any, heard: Heard) -> None:
        """One step that nobody waits for: its answer is handed to `heard`, or the exception is."""
        self._add(verb, arguments, None, (None, heard))

    def _add(self, verb: str, arguments: tuple[Any, ...], blob: bytes | None, asker: _Asker) -> None:
        batch = self._batch
        if batch is None or batch.closed or len(batch.askers) >= _MOST_STEPS:
            batch = self._batch = _Batch(self, self._rank)
        batch.add(verb, arguments, blob, asker)
        if len(batch.askers) == 1:
            self._pipe.carry(batch)

    async def unless_left(self, late: Heard, verb: str, *arguments: Any, blob: bytes | None = None) -> Any:
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
        return [encode([[verb, *arguments]])]


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

    __slots__ = ("_blobs", "_script", "_steps", "_whole", "askers", "closed")

    def __init__(self, script: Steps, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.closed = False  # written, or refused: nothing joins it any more
        self.askers: list[_Asker] = []
        self._script, self._whole = script, False
        self._steps: list[list[Any]] = []
        self._blobs: list[bytes] = []

    def add(self, verb: str, arguments: tuple[Any, ...], blob: bytes | None, asker: _Asker) -> None:
        if blob is None:
            self._steps.append([verb, *arguments])
        else:
            self._blobs.append(blob)
            self._steps.append([verb, 1 + len(self._blobs), *arguments])
        self.askers.append(asker)

    @property
    def wanted(self) -> bool:
        return any(future is None or heard is not None or not future.done() for future, heard in self.askers)

    def packed(self) -> bytes:
        self.closed = True
        command: list[Any] = ["EVALSHA", self._script.sha, 0, encode(self._steps), *self._blobs]
        if self._whole:
            command[:2] = "EVAL", self._script.source
        packed: bytes = hiredis.pack_command(tuple(command))
        return packed

    def answered(self, answer: Any) -> bool:
        if isinstance(answer, NoScriptError) and not self._whole:
            self._whole = True
            return False
        if not isinstance(answer, list) or len(answer) != len(self.askers):
            told = isinstance(answer, Exception)
            self.refuse(answer if told else redis.ResponseError("not an answer for each step"))
            return True
        for (future, heard), each in zip(self.askers, answer, strict=True):
            if future is None or future.done():
                if heard is not None:
                    heard(each)
            elif isinstance(each, Exception):
                refused(future, each)
            else:
                future.set_result(each)
        return True

    def refuse(self, error: Exception) -> None:
        self.closed = True
        for future, heard in self.askers:
            if (future is None or not refused(future, error)) and heard is not None:
                heard(error)
