"""Redis commands of one process over one connection, without redis-py on the way of each.

redis-py opens the connection (address, TLS, AUTH, the hand-shake); then its socket is taken over. Its own
pipeline was the largest single part of a request's profile, most of it for what we never use.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

ANSWER_SECONDS = 2.5
"""How long one command may take before the request in front of it is refused with 503."""

_JOINED_BYTES = 64 * 1024
"""Up to here one copy costs less than many pieces do."""
_MORE: Any = object()


class Asked:
    """One command as a pipe carries it, and whoever waits for its answer."""

    __slots__ = ("again", "due")

    def __init__(self) -> None:
        self.again = False  # it was sent before, over a connection that broke
        self.due = 0.0  # when its answer has to be there, by the loop's clock; since it was sent

    @property
    def wanted(self) -> bool:
        """Whether it is worth sending once more, over a new connection."""
        raise NotImplementedError

    def packed(self) -> list[bytes]:
        """As it goes out, each time it does: the pieces of one command."""
        raise NotImplementedError

    def answered(self, answer: Any) -> bool:
        """Take the answer. False: what came asks for the same in another form, which `packed` has now."""
        raise NotImplementedError

    def refuse(self, error: Exception) -> None:
        """There will be no answer."""
        raise NotImplementedError


class _Command(Asked):
    """A command, or a script by its hash."""

    __slots__ = ("_callback", "_packed", "_script", "future")

    def __init__(
        self,
        packed: bytes,
        callback: Callable[[Any], Any] | None = None,
        script: tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__()
        self._packed, self._callback = packed, callback
        self._script = script  # the same whole, for a server that has forgotten it
        self.future = _future()

    @property
    def wanted(self) -> bool:
        return self._script is not None or not self.future.done()

    def packed(self) -> list[bytes]:
        return [self._packed]

    def answered(self, answer: Any) -> bool:
        if isinstance(answer, Exception):
            if isinstance(answer, NoScriptError) and self._script is not None:
                self._packed, self._script = hiredis.pack_command(self._script), None
                return False
            self.refuse(answer)
        elif not self.future.done():
            self.future.set_result(answer if self._callback is None else self._callback(answer))
        return True

    def refuse(self, error: Exception) -> None:
        refused(self.future, error)


class _Told(Asked):
    """A command whose answer is handed on."""

    __slots__ = ("_heard", "_packed")

    def __init__(self, packed: bytes, heard: Callable[[Any], None]) -> None:
        super().__init__()
        self._packed, self._heard = packed, heard

    @property
    def wanted(self) -> bool:
        return True

    def packed(self) -> list[bytes]:
        return [self._packed]

    def answered(self, answer: Any) -> bool:
        self._heard(answer)
        return True

    def refuse(self, error: Exception) -> None:
        self._heard(error)


class Pipe:
    """Commands given in one turn of the loop go out together, in order, in a single write.

    While one batch is under way the next gathers, so the cost of a trip is shared the more the busier it
    is, and nothing that somebody waits for waits on a timer. What is enough for a trip of its own goes at
    once (`push`). Commands are not a transaction.

    A batch whose connection breaks is sent once more, over a new one (it may have been cut while it was
    idle). After a time-out there is no second try: a frozen server would cost every caller twice as long.
    `client` opens the connection, and belongs to the pipe from then on. Unless it is `lasting`, the pipe ends
    with its first connection: nothing is sent again, and everything later is refused with the same reason.
    """

    def __init__(
        self, client: redis.asyncio.Redis, answer_seconds: float = ANSWER_SECONDS, *, lasting: bool = True
    ) -> None:
        self._client, self._answer_seconds, self._lasting = client, answer_seconds, lasting
        self._callbacks = client.response_callbacks
        self._waiting: list[Asked] = []
        self._in_front: list[Asked] = []
        self._sent: deque[Asked] = deque()
        self._line: _Line | None = None
        self._forgotten = 0  # of those that wait, the first so many are scripts to be sent whole
        self._soon = False  # a write is about to happen, or a connection to be opened
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended: redis.RedisError | None = None

    async def close(self) -> None:
        """Close the connection, and refuse what is under way and whatever comes later: a latecomer would open
        another that nobody closes."""
        self._ended = RedisConnectionError("closed")
        self._fail(self._ended)
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._client.aclose()

    def send(self, *command: Any) -> asyncio.Future[Any]:
        """Queue a command. The future gives its answer or raises its `RedisError`.

        Raises TypeError for an argument that is neither text, bytes nor a number.
        """
        asked = _Command(hiredis.pack_command(command), self._callbacks.get(command[0]))
        self._add(asked, self._waiting)
        return asked.future

    def tell(self, *command: Any, heard: Callable[[Any], None]) -> None:
        """Queue a command whose answer, or the `RedisError`, is handed to `heard` as soon as it has come:
        without a future, and without a turn of the loop in between."""
        self._add(_Told(hiredis.pack_command(command), heard), self._waiting)

    async def follow(self, ask: Callable[[], list[tuple[Any, ...]]], take: Callable[[Any], None]) -> None:
        """Send the commands that `ask` gives and hand the answer to the last of them to `take`, again and
        again, where it comes off the connection: no task wakes for it, and what it wakes goes before the
        next. Raises what any of them is refused with, and what `take` raises. Cancelled, it hands over
        nothing more."""
        broken: asyncio.Future[None] = _future()

        def heard(answer: Any) -> None:
            if isinstance(answer, Exception) and not broken.done():
                broken.set_exception(answer)

        def last(answer: Any) -> None:
            heard(answer)
            if broken.done():
                return
            try:
                take(answer)
                again()
            except Exception as error:  # noqa: BLE001 - it is raised where this is waited for
                heard(error)

        def again() -> None:
            *first, main = ask()
            for command in first:
                self.tell(*command, heard=heard)
            self.tell(*main, heard=last)

        again()
        await broken

    def run(self, sha: str, source: str, *arguments: Any) -> asyncio.Future[Any]:
        """Queue a script by its hash; it is sent whole where the server has forgotten it. Cancelling the
        future does not stop it."""
        packed = hiredis.pack_command(("EVALSHA", sha, 0, *arguments))
        asked = _Command(packed, script=("EVAL", source, 0, *arguments))
        self._add(asked, self._waiting)
        return asked.future

    def carry(self, asked: Asked) -> None:
        """Queue something that still grows until it is written: it goes in front of all commands of that
        write."""
        self._add(asked, self._in_front)

    def _add(self, asked: Asked, queue: list[Asked]) -> None:
        if self._ended is not None:
            asked.refuse(self._ended)
            return
        queue.append(asked)
        self._write_soon()

    def _write_soon(self) -> None:
        if not self._sent and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._write)

    def flush(self) -> None:
        """Write at once what was given in this turn, if nothing is under way: for who gathers by himself."""
        if self._line is not None:
            self._write()

    def push(self) -> None:
        """Write at once what was given so far, though others may be under way: it is enough for a trip."""
        # Where something has to be sent again, that goes before all that was given later.
        if self._line is not None and not self._forgotten and (self._waiting or self._in_front):
            self._send(self._line)

    # -- out -----------------------------------------------------------------------------------------
    def _write(self) -> None:
        self._soon = False
        if self._sent or not (self._waiting or self._in_front):
            return
        loop = asyncio.get_running_loop()
        if self._line is None:
            self._soon = True
            self._opening = loop.create_task(self._open())
            return
        self._send(self._line)

    def _send(self, line: _Line) -> None:
        again, loop = self._forgotten, asyncio.get_running_loop()
        batch = [*self._waiting[:again], *self._in_front, *self._waiting[again:]]
        self._waiting, self._in_front, self._forgotten = [], [], 0
        due, pieces = loop.time() + self._answer_seconds, []
        for asked in batch:
            asked.due = due
            pieces += asked.packed()
        self._sent.extend(batch)
        line.write(pieces)
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)

    async def _open(self) -> None:
        try:
            connection = await self._client.connection_pool.get_connection()
            self._line = _Line(self, connection)
        except (redis.RedisError, OSError) as e:
            self._soon = False
            self._break(e if isinstance(e, redis.RedisError) else RedisConnectionError(str(e)))
            return
        except BaseException:
            self._soon = False
            self._fail(RedisConnectionError("closed while it was opened"))
            raise
        self._write()

    def _look(self) -> None:
        """Whether what was sent first takes too long: one timer, set again only when it has run out."""
        self._timer = None
        if not self._sent:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < (due := self._sent[0].due):
            self._timer = loop.call_at(due, self._look)
            return
        line, self._line = self._line, None
        # What gathered meanwhile has waited as well: nobody waits for two time-outs.
        self._break(redis.TimeoutError("no answer in time"))
        if line is not None:
            line.abort()

    def _break(self, error: redis.RedisError) -> None:
        if not self._lasting and self._ended is None:
            self._ended = error
        self._fail(error)

    def _fail(self, error: redis.RedisError) -> None:
        failed = [*self._sent, *self._in_front, *self._waiting]
        self._waiting, self._in_front, self._forgotten = [], [], 0
        self._sent.clear()
        for asked in failed:
            asked.refuse(error)

    # -- in: called by the line ------------------------------------------------------------------------
    def answered(self, answer: Any) -> None:
        """One answer has come, to the oldest command under way."""
        asked = self._sent.popleft()
        if not asked.answered(answer):
            # Before what gathered meanwhile, and in the order in which they were given.
            self._waiting.insert(self._forgotten, asked)
            self._forgotten += 1
        if not self._sent and not self._soon and (self._waiting or self._in_front):
            self._write_soon()  # behind those who have just been answered: what they ask next goes along

    def lost(self, line: _Line, why: BaseException | None) -> None:
        """The connection is gone."""
        if line is not self._line:
            return
        self._line = None
        error = RedisConnectionError(str(why) if why else "the connection was closed by the server")
        if not self._lasting:
            self._break(error)
            return
        again = []
        for asked in self._sent:
            if asked.again:
                asked.refuse(error)
            elif asked.wanted:
                asked.again = True
                again.append(asked)
        self._sent.clear()
        self._waiting[self._forgotten : self._forgotten] = again
        self._forgotten += len(again)
        if self._waiting or self._in_front:
            self._write_soon()


class _Line(asyncio.Protocol):
    """A connection of redis-py's whose socket answers to us."""

    def __init__(self, pipe: Pipe, connection: Any) -> None:
        self._pipe, self._connection = pipe, connection
        self._pool = pipe._client.connection_pool
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=_MORE)
        self._transport: asyncio.Transport = connection._writer.transport
        self._first = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    def write(self, pieces: list[bytes]) -> None:
        if sum(map(len, pieces)) <= _JOINED_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        reader, pipe = self._reader, self._pipe
        reader.feed(data)
        try:
            while (answer := reader.gets()) is not _MORE:
                if not isinstance(answer, hiredis.PushNotification):
                    pipe.answered(answer)
        except (hiredis.HiredisError, IndexError):  # it does not speak the protocol, or out of turn
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._first.connection_lost(exc)  # whoever closes it by redis-py waits for this
        pipe = self._pipe
        pipe.lost(self, exc)
        # Nothing of it is open any more: it has to know that, and the pool to forget it.
        self._connection._close()
        self._pool._in_use_connections.discard(self._connection)


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def refused(future: asyncio.Future[Any], error: Exception) -> bool:
    """Refuse whoever waits. False if nobody does any more."""
    if future.done():
        return False
    future.set_exception(error)
    future.exception()  # a caller that has left must not raise "never retrieved"
    return True


def _error(message: str) -> Exception:
    """What the server refused a command with, as redis-py calls it where we ask."""
    if message.startswith("NOSCRIPT"):
        return NoScriptError(message)
    return ResponseError(message)
