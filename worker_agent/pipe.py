"""Redis commands of one process over one connection, without redis-py on the way of each.

redis-py opens the connection (address, TLS, AUTH, the hand-shake); then its socket is taken over. Its own
pipeline was the largest single part of a request's profile, most of it for what we never use.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import hiredis
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

ANSWER_SECONDS = 2.5
"""How long one command may take before the request in front of it is refused with 503."""

_MORE: Any = object()


class _Asked(NamedTuple):
    name: Any
    packed: bytes
    future: asyncio.Future[Any]
    again: bool  # it was sent before, over a connection that broke
    script: tuple[Any, ...] | None = None  # the same whole, for a server that has forgotten it
    late: Callable[[Any], None] | None = None  # hears the answer if the future is done by then


class Pipe:
    """Commands given in one turn of the loop go out together, in order, in a single write.

    While one batch is under way the next gathers, so the cost of a trip is shared the more the busier it
    is, and nothing waits on a timer: one looks after the whole connection. Commands are not a transaction.

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
        self._waiting: list[_Asked] = []
        self._sent: deque[_Asked] = deque()
        self._line: _Line | None = None
        self._forgotten = 0  # of those that wait, the first so many are scripts to be sent whole
        self._soon = False  # a write is about to happen, or a connection to be opened
        self._opening: asyncio.Task[None] | None = None
        self._deadline = 0.0
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
        return self._ask(_Asked(command[0], hiredis.pack_command(command), _future(), False))

    def run(
        self, sha: str, source: str, *arguments: Any, late: Callable[[Any], None] | None = None
    ) -> asyncio.Future[Any]:
        """Queue a script by its hash; it is sent whole where the server has forgotten it. Cancelling the
        future does not stop it: its answer (or the exception) is handed to `late` then."""
        packed = hiredis.pack_command(("EVALSHA", sha, 0, *arguments))
        return self._ask(_Asked("EVALSHA", packed, _future(), False, ("EVAL", source, 0, *arguments), late))

    def _ask(self, asked: _Asked) -> asyncio.Future[Any]:
        if self._ended is not None:
            _refuse(asked, self._ended)
            return asked.future
        self._waiting.append(asked)
        if not self._sent and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._write)
        return asked.future

    def flush(self) -> None:
        """Write at once what was given in this turn, if nothing is under way: for who gathers by himself."""
        if self._line is not None:
            self._write()

    # -- out -----------------------------------------------------------------------------------------
    def _write(self) -> None:
        self._soon = False
        if self._sent or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self._line is None:
            self._soon = True
            self._opening = loop.create_task(self._open())
            return
        self._sent.extend(self._waiting)
        self._waiting, self._forgotten = [], 0
        self._line.write([asked.packed for asked in self._sent])
        self._deadline = loop.time() + self._answer_seconds
        if self._timer is None:
            self._timer = loop.call_at(self._deadline, self._look)

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
            waiting, self._waiting, self._forgotten = self._waiting, [], 0
            for asked in waiting:
                asked.future.cancel()
            raise
        self._write()

    def _look(self) -> None:
        """Whether the batch under way takes too long: one timer, set again only when it has run out."""
        self._timer = None
        if not self._sent:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._deadline:
            self._timer = loop.call_at(self._deadline, self._look)
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
        failed, self._waiting, self._forgotten = [*self._sent, *self._waiting], [], 0
        self._sent.clear()
        for asked in failed:
            _refuse(asked, error)

    # -- in: called by the line ------------------------------------------------------------------------
    def answered(self, answer: Any) -> None:
        """One answer has come, to the oldest command under way."""
        asked = self._sent.popleft()
        if isinstance(answer, Exception):
            if isinstance(answer, NoScriptError) and asked.script and asked.name == "EVALSHA":
                packed = hiredis.pack_command(asked.script)
                # Before what gathered meanwhile, and in the order in which they were given.
                self._waiting.insert(self._forgotten, asked._replace(name="EVAL", packed=packed))
                self._forgotten += 1
            else:
                _refuse(asked, answer)
        elif not asked.future.done():
            callback = self._callbacks.get(asked.name)
            asked.future.set_result(answer if callback is None else callback(answer))
        elif asked.late:
            asked.late(answer)
        if not self._sent and self._waiting and not self._soon:
            self._soon = True
            # Behind those who have just been answered: what they ask next goes along.
            asyncio.get_running_loop().call_soon(self._write)

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
                _refuse(asked, error)
            elif asked.script or not asked.future.done():
                again.append(asked._replace(again=True))
        self._sent.clear()
        self._waiting[self._forgotten : self._forgotten] = again
        if self._waiting and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._write)


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

    def write(self, packed: list[bytes]) -> None:
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))

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


def _refuse(asked: _Asked, error: Exception) -> None:
    if not asked.future.done():
        asked.future.set_exception(error)
        asked.future.exception()  # a caller that has left must not raise "never retrieved"
    elif asked.late:
        asked.late(error)


def _error(message: str) -> Exception:
    """What the server refused a command with, as redis-py calls it where we ask."""
    if message.startswith("NOSCRIPT"):
        return NoScriptError(message)
    return ResponseError(message)
