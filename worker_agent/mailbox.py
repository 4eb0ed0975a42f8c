"""The agent's end of the wire: takes `Work` and `Control`, sends `Reply`, keeps the node's lease fresh.

Nothing else in the agent knows that the wire is Redis. While Redis is away, `send` keeps what is owed (up to
a bound) and everything goes on; writing is at least once, so a reply whose write was cut may arrive twice,
with the same sequence number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from worker_agent import contract, log
from worker_agent.backoff import Backoff
from worker_agent.contract import Chunk, Control, RedisAccess, Reply, Work
from worker_agent.outbox import Batch, Outbox
from worker_agent.pipe import Pipe

_logger = logging.getLogger(__name__)

BLOCK_MS = 2000
READ_COUNT = 128
ANSWER_SECONDS = 5.0
"""A command that takes longer means a dead connection (a blocking read may take `BLOCK_MS` more)."""
NOBODY_SECONDS = 5.0
"""A reply stream that has been missing for so long has no reader any more."""

_FIRST_SILENCE_SECONDS = 20.0


def remedy_for(error: BaseException) -> str | None:
    """What the person who runs this agent can do about it."""
    if "certificate" in str(error).lower():
        return "name the certificate authority of the broker with --redis-ca"
    return None


def is_denied(error: BaseException) -> bool:
    """Whether Redis does not know this node's user (any more), or does not let it do this."""
    denied = isinstance(error, AuthenticationError | NoPermissionError)
    return denied or str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM"))


class Mailbox:
    """Built once for each agent; `use` connects it, and connects it anew.

    `on_work` and `on_control` are called from the reader and must return at once; `on_nobody(web)` when a web
    process no longer reads; `on_denied()` when the credentials are refused (`use` is the way out of that);
    `on_connected()` when the broker is there, for the first time or again.
    """

    def __init__(
        self,
        *,
        on_work: Callable[[Work], None],
        on_control: Callable[[Control], None],
        on_nobody: Callable[[str], None],
        on_denied: Callable[[], None],
        on_connected: Callable[[], None],
        redis_ca: str | None = None,
        owed_bytes: int = 64 << 20,
        nobody_seconds: float = NOBODY_SECONDS,
    ) -> None:
        self._on_work, self._on_control = on_work, on_control
        self._on_nobody, self._on_denied, self._on_connected = on_nobody, on_denied, on_connected
        self._redis_ca = redis_ca
        self._outbox = Outbox(owed_bytes)
        self._append = _Append()
        self._nobody_seconds = nobody_seconds
        self._access: RedisAccess | None = None
        self._out: Pipe | None = None  # for what is written
        self._in: Pipe | None = None  # for what is read, as long as one connection lasts
        self._ready = asyncio.Event()
        self._renewed = asyncio.Event()
        self.connected = False
        self.denied = False
        self._said, self._say_again, self._silence = "", 0.0, _FIRST_SILENCE_SECONDS
        self.node, self.incarnation = "", 0
        self._lease_refresh, self._lease_ms = 2.0, 6000

    async def use(self, access: RedisAccess) -> None:
        """Connect with these credentials from now on, cutting the connections of the old ones."""
        self.denied = False
        old = (self._out, self._in)
        self._access, self._in = access, None
        self._out = Pipe(self._connect(access, ANSWER_SECONDS), ANSWER_SECONDS)
        self._ready.set()
        self._renewed.set()
        await _close(*old)

    def identify(self, node: str, incarnation: int, lease_refresh: float, lease_seconds: float) -> None:
        """Say whose mailbox this is; before the first `use`, and after every registration."""
        self.node, self.incarnation = node, incarnation
        self._lease_refresh, self._lease_ms = lease_refresh, int(lease_seconds * 1000)

    def send(self, web: str, reply: Reply) -> bool:
        """Send soon; returns at once. False if too much is owed already: the reply was dropped.

        Only chunks are dropped: the last word on an attempt is small and always kept.
        """
        return self._outbox.put(web, reply, must=not isinstance(reply, Chunk))

    async def run(self) -> None:
        """Read, write and refresh for ever; returns only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._for_ever("read", self._read))
            tasks.create_task(self._for_ever("write", self._write))
            tasks.create_task(self._for_ever("lease", self._refresh))

    async def flush(self, seconds: float) -> bool:
        """Wait until nothing is owed; False if that took longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.empty()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Give up the lease and hang up. `run` must have ended."""
        out, self._out, self._access = self._out, None, None
        if out is not None and self.connected:
            try:
                async with asyncio.timeout(1.0):
                    await out.send("DEL", contract.lease_key(self.node))
            except (RedisError, TimeoutError):
                pass  # it expires by itself
        await _close(out, self._in)

    # -- the connection --------------------------------------------------------------------------------
    def _connect(self, access: RedisAccess, answer_seconds: float) -> redis.Redis:
        options: dict[str, Any] = {}
        if access.url.startswith("rediss://") and self._redis_ca is not None:
            options["ssl_ca_certs"] = self._redis_ca
        client = redis.Redis.from_url(
            access.url,
            username=access.username or None,
            password=access.password or None,
            protocol=2,
            # What the node's user may not do, the client must not try: no CLIENT SETINFO on connecting.
            driver_info=None,
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=answer_seconds,
            socket_keepalive=True,
            retry=None,
            **options,
        )
        client.response_callbacks.clear()  # answers as the wire has them: no object for each entry
        return client

    async def _for_ever(self, what: str, loop: Callable[[RedisAccess, Pipe], Awaitable[None]]) -> None:
        """Run `loop`; when it breaks, again after a growing pause."""
        backoff = Backoff()
        while True:
            await self._ready.wait()
            access, out = self._access, self._out
            assert access is not None
            assert out is not None
            started = asyncio.get_running_loop().time()
            try:
                await loop(access, out)
            except (RedisError, OSError) as error:
                if out is not self._out:
                    continue  # we hung up ourselves, for better credentials
                if asyncio.get_running_loop().time() - started > 10:
                    backoff.reset()
                self._lost(what, error)
                await self._pause(backoff.pause())

    def _lost(self, what: str, error: BaseException) -> None:
        denied = is_denied(error)
        why = "the credentials are refused" if denied else str(error) or type(error).__name__
        words = "lost the broker, trying again" if self.connected else "no connection to the broker"
        self._say(words, what, why, remedy_for(error))
        self.connected = False
        self.denied = self.denied or denied
        if denied:
            self._on_denied()

    def _say(self, words: str, part: str, why: str, remedy: str | None) -> None:
        """Log a failure once for each new reason, then again after pauses that double up to ten minutes."""
        now = asyncio.get_running_loop().time()
        if why != self._said:
            self._said, self._silence = why, _FIRST_SILENCE_SECONDS
        elif now < self._say_again:
            return
        self._say_again, self._silence = now + self._silence, min(600.0, 2 * self._silence)
        log.event(_logger, logging.WARNING, words, part=part, why=why, remedy=remedy)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond new credentials."""
        self._renewed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._renewed.wait()
        except TimeoutError:
            pass

    # -- reading ---------------------------------------------------------------------------------------
    async def _read(self, access: RedisAccess, _: Pipe) -> None:
        # From the beginning on every connection: what is still there was never read, or its deletion is
        # owed (the outbox knows those). A kept cursor would miss entries after a Redis whose clock or
        # history is another; hence a pipe that ends with its connection.
        patience = ANSWER_SECONDS + BLOCK_MS / 1000
        pipe = self._in = Pipe(self._connect(access, patience), patience, lasting=False)
        try:
            await self._read_from(pipe)
        finally:
            await _close(pipe)

    async def _read_from(self, pipe: Pipe) -> None:
        inbox, control = contract.inbox_key(self.node), contract.control_key(self.node)
        key_of = {inbox.encode(): inbox, control.encode(): control}
        after: dict[str, bytes | str] = {inbox: "0-0", control: "0-0"}
        block: tuple[str | int, ...] = ()  # the first read returns at once and proves the connection

        def ask() -> list[tuple[Any, ...]]:
            command = ("XREAD", "COUNT", READ_COUNT, *block, "STREAMS", inbox, control)
            return [(*command, after[inbox], after[control])]

        def take(found: Any) -> None:
            nonlocal block
            block = ("BLOCK", BLOCK_MS)
            self._connected()
            for stream, entries in found or ():
                key = key_of[stream]
                for entry, fields in entries:
                    after[key] = entry
                    if not self._outbox.is_deleting(key, entry):
                        self._outbox.delete(key, entry)
                        self._take(key == inbox, _message(fields))

        await pipe.follow(ask, take)

    def _connected(self) -> None:
        if not self.connected:
            self.connected, self.denied, self._said = True, False, ""
            self._on_connected()
            log.event(_logger, logging.INFO, "connected to the broker")

    def _take(self, is_work: bool, data: bytes) -> None:
        try:
            if is_work:
                self._on_work(contract.decode_work(data))
            else:
                self._on_control(contract.decode_control(data))
        except msgspec.MsgspecError as error:
            log.event(_logger, logging.ERROR, "dropped a message that is not understood", why=str(error))

    # -- writing ---------------------------------------------------------------------------------------
    async def _write(self, _: RedisAccess, pipe: Pipe) -> None:
        writer = _Writer(pipe, self._outbox, self._written, self._append)
        try:
            self._outbox.listen(writer.soon)
            await writer.broken
        finally:
            self._outbox.listen(None)

    def _written(self, batch: Batch, nobody: set[str]) -> None:
        now = asyncio.get_running_loop().time()
        for web in self._outbox.done(batch, nobody, now, self._nobody_seconds):
            log.event(_logger, logging.WARNING, "nobody reads the replies any more", web=web)
            self._on_nobody(web)

    async def _refresh(self, _: RedisAccess, pipe: Pipe) -> None:
        while True:
            await pipe.send("SET", contract.lease_key(self.node), self.incarnation, "PX", self._lease_ms)
            await asyncio.sleep(self._lease_refresh)


class _Writer:
    """Writes what is owed, one batch after the other, where their answers come off the connection: no task
    wakes for a token. `written` hears of each batch, and whose streams had no reader."""

    def __init__(
        self, pipe: Pipe, outbox: Outbox, written: Callable[[Batch, set[str]], None], append: _Append
    ) -> None:
        self._pipe, self._outbox, self._written, self._append = pipe, outbox, written, append
        self._loop = asyncio.get_running_loop()
        self._soon = self._under_way = False
        self.broken: asyncio.Future[None] = self._loop.create_future()
        """Raises what a write was refused with."""

    def soon(self) -> None:
        """There may be something to write: what comes in this turn goes along."""
        if not self._soon and not self._under_way:
            self._soon = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._soon = False
        if self._under_way or self.broken.done():
            return
        try:
            if (batch := self._outbox.batch(self._loop.time())) is not None:
                self._write(batch)
        except Exception as error:  # noqa: BLE001 - it is raised where this is waited for
            self.broken.set_exception(error)

    def _write(self, batch: Batch) -> None:
        self._under_way = True
        answers: list[Any] = []

        def heard(answer: Any) -> None:
            answers.append(answer)
            if len(answers) == len(commands):  # they come in order
                self._heard(batch, answers)

        append, now = self._append, self._loop.time()
        commands = [append.command(contract.reply_key(web), data, now) for web, data in batch.writes]
        commands += [("XDEL", key, *entries) for key, entries in batch.deletes.items()]
        for command in commands:
            self._pipe.tell(*command, heard=heard)
        self._pipe.flush()

    def _heard(self, batch: Batch, answers: list[Any]) -> None:
        self._under_way = False
        if self.broken.done():
            return
        try:
            for answer in answers:
                if isinstance(answer, Exception):
                    if not self._append.refused(answer, self._loop.time()):
                        raise answer
                    self._next()  # once more, as it was
                    return
            nobody = {web for (web, _), answer in zip(batch.writes, answers, strict=False) if answer is None}
            self._written(batch, nobody)
        except Exception as error:  # noqa: BLE001 - as above
            self.broken.set_exception(error)
        else:
            self._next()


class _Append:
    """How to append to a reply stream: by the coordinator's function, which keeps answers out of Redis's
    file; by XADD for a while where there is none, or where we may not call it (an older coordinator)."""

    def __init__(self) -> None:
        self._plain_until = 0.0

    def command(self, key: str, data: bytes, now: float) -> tuple[Any, ...]:
        if now < self._plain_until:
            return ("XADD", key, *_OPTIONS, data)
        return ("FCALL", contract.REPLY_FUNCTION, 0, key, contract.REPLY_STREAM_MAXLEN, data)

    def refused(self, error: Exception, now: float) -> bool:
        """Whether the same may be tried by XADD now."""
        said = str(error).lower()
        if now < self._plain_until or not ("function not found" in said or "fcall" in said):
            return False
        self._plain_until = now + _PLAIN_SECONDS
        return True


_OPTIONS = ("NOMKSTREAM", "MAXLEN", "~", contract.REPLY_STREAM_MAXLEN, "*", contract.FIELD)
_PLAIN_SECONDS = 10.0


def _message(fields: list[bytes]) -> bytes:
    """What an entry carries, of its names and values; nothing if it is none of ours."""
    if len(fields) == 2 and fields[0] == contract.FIELD:
        return fields[1]
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(contract.FIELD, b"")


async def _close(*pipes: Pipe | None) -> None:
    for pipe in pipes:
        if pipe is not None:
            with contextlib.suppress(RedisError, OSError):  # it was broken already
                await pipe.close()
