"""Jobs that are watched here and answered by another web process: a copy of the tail that is kept there, for
as long as somebody here watches (see `jobs.relaying` for the other side).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import redis

from gputorrent import background
from gputorrent.redis import Pipe
from jobs.mailbox import Mailbox, OwnStream, reading_pipe
from jobs.relaying import ASK_SECONDS, LAPSE_SECONDS, Relayed, question, watch_key
from jobs.tail import Tail, Tails
from worker_agent.contract import FIELD, encode

log = logging.getLogger(__name__)

_BLOCK_MS = 500
_PER_READ = 200
_STREAM_SECONDS = 60
_decode = msgspec.msgpack.Decoder(Relayed).decode


class _Replica:
    def __init__(self, web: str, tail: Tail) -> None:
        self.web, self.tail = web, tail
        self.watchers = 0
        self.heard_at = time.monotonic()
        self.behind = False  # something was lost on the way: it is to be sent again from `count` on

    @property
    def count(self) -> int:
        """The number of the newest chunk: here each is a part of its own."""
        return self.tail.dropped + len(self.tail)


class Replicas:
    """All that this process has others relay to it. Its reader starts when it is first needed."""

    def __init__(self, pipe: Pipe, mailbox: Mailbox, tails: Tails) -> None:
        self._pipe, self._mailbox, self._tails = pipe, mailbox, tails
        self.ask_seconds, self.lapse_seconds = ASK_SECONDS, LAPSE_SECONDS
        self._key = watch_key(mailbox.web)
        self._replicas: dict[str, _Replica] = {}
        self._reader: Pipe | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked_at = 0.0

    async def stop(self) -> None:
        await background.end([self._task])
        if self._reader is not None:
            with suppress(redis.RedisError):
                await self._pipe.send("DEL", self._key)
            await self._reader.close()

    @asynccontextmanager
    async def of(self, job: str, web: str) -> AsyncIterator[Tail]:
        """The copy of a job's tail; `lost` when its process does not know it, or says nothing for 10 s.

        Raises `redis.RedisError` when Redis is away at the beginning.
        """
        replica = self._replicas.get(job)
        new = replica is None
        if replica is None:
            replica = self._replicas[job] = _Replica(web, Tail(self._tails))
        replica.watchers += 1
        try:
            if new:
                await self._begin(job, replica)
            yield replica.tail
        finally:
            replica.watchers -= 1
            if not replica.watchers:
                if self._replicas.get(job) is replica:
                    del self._replicas[job]
                replica.tail.clear()

    async def _begin(self, job: str, replica: _Replica) -> None:
        try:
            if self._task is None:
                self._reader = reading_pipe(_BLOCK_MS)
                self._asked_at = time.monotonic()
                self._task = asyncio.create_task(self._read_forever(self._reader), name="replicas.read")
            await self._open()
            if not await self._ask(job, replica):
                self._lose(job, replica)
        except BaseException:
            self._lose(job, replica)
            raise

    async def _open(self) -> None:
        # Others append only to a stream that exists. An entry made and deleted leaves an empty one.
        if not await self._pipe.send("EXPIRE", self._key, _STREAM_SECONDS):
            first = await self._pipe.send("XADD", self._key, "*", FIELD, encode(Relayed("")))
            self._pipe.send("XDEL", self._key, first)
            await self._pipe.send("EXPIRE", self._key, _STREAM_SECONDS)

    async def _ask(self, job: str, replica: _Replica) -> bool:
        text = question(job, self._mailbox.web, replica.count, anew=replica.behind)
        return await self._mailbox.ask_to_watch(replica.web, text)

    def _lose(self, job: str, replica: _Replica) -> None:
        """Whoever watches has to look elsewhere; the next who comes asks again."""
        if self._replicas.get(job) is replica:
            del self._replicas[job]
        replica.tail.lost = True
        replica.tail.wake()

    async def _read_forever(self, pipe: Pipe) -> None:
        stream = OwnStream(pipe, self._key, _PER_READ, _BLOCK_MS)
        while True:
            try:
                if time.monotonic() - self._asked_at > self.ask_seconds:
                    self._asked_at = time.monotonic()
                    await self._ask_again()
                entries = await stream.next()
            except (redis.RedisError, OSError) as e:
                log.warning("watch stream unreadable error=%s", type(e).__name__)
                await asyncio.sleep(_BLOCK_MS / 1000)
                continue
            for fields in entries:
                try:
                    self._take(fields.get(FIELD, b""))
                except Exception:  # one bad message must not blind everybody else
                    log.exception("relayed message dropped")

    async def _ask_again(self) -> None:
        if self._replicas:
            await self._open()
        for job, replica in list(self._replicas.items()):
            standing = replica.tail.standing
            if standing is not None and standing.ended:
                continue
            if time.monotonic() - replica.heard_at > self.lapse_seconds:
                self._lose(job, replica)
            else:
                await self._ask(job, replica)

    def _take(self, packed: bytes) -> None:
        news = _decode(packed)
        replica = self._replicas.get(news.job)
        if replica is None:
            return
        replica.heard_at = time.monotonic()
        if news.gone:
            self._lose(news.job, replica)
            return
        tail = replica.tail
        if news.before > replica.count:
            if not news.jumped:
                if not replica.behind:
                    replica.behind, self._asked_at = True, 0.0
                return
            tail.jump_to(news.before)
        replica.behind = False
        for chunk in news.chunks[replica.count - news.before :]:
            tail.add(b"data: " + chunk + b"\n\n")
        if news.standing is not None:
            tail.tell(news.standing)
