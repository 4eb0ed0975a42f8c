"""Lua scripts of many steps: what many requests ask of Redis in the same moment is one call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

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
    before and after all `steps`, where each has its verb behind its arguments. `time()` is Redis's, the same
    for the whole call. A step that fails is refused alone. What was sent is sent again when its connection
    breaks, so a step must change nothing the second time. Several scripts on one pipe share their calls: all
    steps of the one with the lesser `rank` are taken first.
    """

    def __init__(self, pipe: Pipe, source: str, rank: int = 0) -> None:
        self._pipe = pipe
        self._part = _Part(source, rank)
        self._call = _CALLS.setdefault(pipe, _Call())
        self._call.join(self._part)

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
        call = self._call
        batch = call.batch
        if batch is None or batch.closed or batch.size >= _MOST_STEPS:
            batch = call.batch = _Batch(call)
            batch.add(self._part, verb, arguments, blob, asker)
            self._pipe.carry(batch)
        else:
            batch.add(self._part, verb, arguments, blob, asker)
            if batch.size == _ENOUGH:
                self._pipe.push()

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
        """What Redis is sent of such a script, if it stands alone."""
        return _whole([source])

    @staticmethod
    def alone(verb: str, *arguments: Any) -> list[bytes]:
        """The ARGV of one step without a blob, for a blocking client: the answer is a list of one."""
        return [encode([[[*arguments, verb]]])]


class _Part:
    """One script of a call."""

    __slots__ = ("rank", "source")

    def __init__(self, source: str, rank: int) -> None:
        self.source, self.rank = source, rank


class _Call:
    """The scripts of one pipe as one: a call costs Redis as much as several steps, whichever they are."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.batch: _Batch | None = None  # the last one, which may still grow
        self.source = self.sha = ""

    def join(self, part: _Part) -> None:
        self.parts = sorted([*self.parts, part], key=attrgetter("rank"))
        self.source = _whole([each.source for each in self.parts])
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


_CALLS: WeakKeyDictionary[Pipe, _Call] = WeakKeyDictionary()


def _whole(sources: list[str]) -> str:
    return _HEAD + "".join(f"{_BEFORE}{source}{_AFTER}" for source in sources) + _TAIL


_HEAD: Final = """
local given, answers, taken = cmsgpack.unpack(ARGV[1]), {}, 0
local moment
local function time()
  moment = moment or redis.call('TIME')
  return moment
end
local parts = {
"""
_BEFORE: Final = """
function(steps)
local verbs, begin, finish = {}
"""
_AFTER: Final = """
return verbs, begin, finish
end,
"""
_TAIL: Final = """
}
local function refusal(why)
  return type(why) == 'table' and why or redis.error_reply('ERR ' .. tostring(why))
end
local function take(part, steps)
  local verbs, begin, finish = part(steps)
  if begin then begin() end
  for i, step in ipairs(steps) do
    local ok, answer = pcall(verbs[table.remove(step)], step)
    if not ok then answer = refusal(answer) end
    answers[taken + i] = answer or false
  end
  if finish then finish() end
end
for n, steps in ipairs(given) do
  if #steps > 0 then
    local ok, why = pcall(take, parts[n], steps)
    if not ok then
      for i = 1, #steps do answers[taken + i] = refusal(why) end
    end
    taken = taken + #steps
  end
end
return answers
"""


_ENOUGH: Final = 40
"""Steps that are worth a call of their own. Where hundreds come in one turn of the loop, a node has the first
while the others are still weighed; a call of fewer costs more than that is worth."""

_MOST_STEPS: Final = 512
"""In one call: about 3 ms in which Redis does nothing else."""


class _Batch(Asked):
    """The steps of one call, until it is written; then those who wait for their answers."""

    __slots__ = ("_askers", "_blobs", "_call", "_steps", "_whole", "closed", "size")

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.closed = False  # written, or refused: nothing joins it any more
        self.size = 0
        self._call, self._whole = call, False
        self._steps: dict[_Part, list[list[Any]]] = {}
        self._askers: dict[_Part, list[_Asker]] = {}
        self._blobs: list[bytes] = []

    def add(
        self, part: _Part, verb: str, arguments: tuple[Any, ...], blob: bytes | None, asker: _Asker
    ) -> None:
        if blob is None:
            step = [*arguments, verb]
        else:
            self._blobs.append(blob)
            step = [1 + len(self._blobs), *arguments, verb]
        try:
            self._steps[part].append(step)
            self._askers[part].append(asker)
        except KeyError:
            self._steps[part], self._askers[part] = [step], [asker]
        self.size += 1

    def _in_order(self) -> list[_Asker]:
        """As the steps are taken."""
        return [asker for part in self._call.parts for asker in self._askers.get(part, ())]

    @property
    def wanted(self) -> bool:
        return any(
            future is None or heard is not None or not future.done() for future, heard in self._in_order()
        )

    def packed(self) -> list[bytes]:
        self.closed = True
        call = self._call
        steps = encode([self._steps.get(part, ()) for part in call.parts])
        name, script = ("EVAL", call.source) if self._whole else ("EVALSHA", call.sha)
        command: tuple[Any, ...] = name, script, 0, steps
        head: bytes = hiredis.pack_command(command)
        if not self._blobs:
            return [head]
        # By hand, so that long blobs are copied nowhere: the same command with more arguments.
        pieces = [b"*%d" % (4 + len(self._blobs)), head[2:]]
        for blob in self._blobs:
            pieces += b"$%d\r\n" % len(blob), blob, b"\r\n"
        return pieces

    def answered(self, answer: Any) -> bool:
        if isinstance(answer, NoScriptError) and not self._whole:
            self._whole = True
            return False
        if not isinstance(answer, list) or len(answer) != self.size:
            told = isinstance(answer, Exception)
            self.refuse(answer if told else redis.ResponseError("not an answer for each step"))
            return True
        for (future, heard), each in zip(self._in_order(), answer, strict=True):
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
        for future, heard in self._in_order():
            if (future is None or not refused(future, error)) and heard is not None:
                heard(error)
