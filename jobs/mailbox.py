"""The coordinator's end of the wire: one reply stream and one reader for each web process.

Work goes out by `board.lua`, in the step that takes the slot; everything else about the wire is here. The
reader hands each reply to the attempt it belongs to, or counts it as stale: the lease proves that the
sender is the node that the work was given to, the sequence number that nothing is missing or doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import redis
import redis.asyncio

from gputorrent import background, credentials
from gputorrent.chosen import settings
from gputorrent.redis import ANSWER_SECONDS, Pipe, asynchronous
from jobs.interactive import InteractiveJob
from worker_agent.contract import (
    FIELD,
    REPLY_SOURCE,
    Cancel,
    Chunk,
    Control,
    Done,
    Failed,
    Reply,
    Work,
    control_key,
    decode_replies,
    encode,
    reply_key,
)

log = logging.getLogger(__name__)

LEASE_SECONDS = 10
_REFRESH_SECONDS = 2.0
_BLOCK_MS = 1000
_PER_READ = 2000
_PLACED = b"p"
_CANCEL = b"c"
_WATCH = b"w"


def web_key(web: str) -> str:
    """Exists while that web process lives; the board gives no slot to a waiter whose process is gone."""
    return f"gt:web:{web}"


class Attempted(Protocol):
    """What the mailbox needs of a job with a live attempt. All calls come from the event loop."""

    attempt: int
    lease: bytes
    next_seq: int

    def on_placed(self, node: str) -> None: ...
    def on_reply(self, reply: Reply) -> None: ...
    def on_gap(self) -> None: ...


class Mailbox:
    def __init__(self, pipe: Pipe, on_cancel: Callable[[str], object] = lambda job: None) -> None:
        self.web = secrets.token_hex(8)
        self.stale = 0
        """Messages that matched no live attempt, since start."""
        self._pipe = pipe
        self._on_cancel = on_cancel
        self.on_placed: Callable[[str], object] = lambda job: None
        """A job that waited has been placed."""
        self.on_watch: Callable[[str], object] = lambda text: None
        """Another process asks for what a job of this one answers (see `jobs.relaying`)."""
        self._jobs: dict[str, Attempted] = {}
        self._reader: Pipe | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def expect(self, job: str, attempted: Attempted) -> None:
        """Hand the replies to this job's live attempt to `attempted` from now on."""
        self._jobs[job] = attempted

    def work(self, job: InteractiveJob) -> Work:
        """What a node is to do for the live attempt."""
        request = job.request
        return Work(
            job=job.id,
            attempt=job.attempt,
            lease=job.lease,
            reply=self.web,
            model=request.model,
            path=request.path,
            body=request.body,
            stream=request.stream,
            hide_usage=request.hide_usage,
            first_token_seconds=settings.FIRST_TOKEN_SECONDS,
            stall_seconds=settings.STALL_SECONDS,
            total_seconds=settings.TOTAL_SECONDS,
        )

    def forget(self, job: str) -> None:
        self._jobs.pop(job, None)

    async def start(self) -> None:
        """Open the reply stream. Raises `redis.RedisError` when Redis is away."""
        await self.open()
        self._reader = reading_pipe(_BLOCK_MS)
        self._tasks = [
            asyncio.create_task(self._read_forever(self._reader), name="mailbox.read"),
            asyncio.create_task(self._stay_alive(), name="mailbox.stay_alive"),
        ]

    async def stop(self) -> None:
        """Close the stream: agents see that nobody listens and stop what they did for us."""
        await background.end(self._tasks)
        with contextlib.suppress(redis.RedisError):
            await self._pipe.send("DEL", reply_key(self.web), web_key(self.web))
        if self._reader:
            await self._reader.close()

    async def open(self) -> None:
        """Make the stream, the sign of life and the nodes' function, if they are not there (Redis may have
        come back empty)."""
        key = reply_key(self.web)
        _, exists = await asyncio.gather(
            self._pipe.send("SET", web_key(self.web), "1", "EX", LEASE_SECONDS),
            self._pipe.send("EXPIRE", key, 6 * LEASE_SECONDS),
        )
        if not exists:
            await self._give_function()
            # Agents append only to a stream that exists. An entry made and deleted leaves an empty one.
            first = await self._pipe.send("XADD", key, "*", FIELD, encode([]))
            await asyncio.gather(
                self._pipe.send("XDEL", key, first), self._pipe.send("EXPIRE", key, 6 * LEASE_SECONDS)
            )

    async def _give_function(self) -> None:
        try:
            await self._pipe.send("FUNCTION", "LOAD", REPLY_SOURCE)
        except redis.ResponseError as e:
            if "already exists" not in str(e):  # we may not: nodes append by XADD
                log.warning("answers will be in redis's append-only file: %s", e)

    def cancel(self, node: str, job: str, attempt: int) -> asyncio.Future[Any]:
        """Ask a node to stop an attempt."""
        return self.tell(node, Cancel(job, attempt))

    def tell(self, node: str, message: Control) -> asyncio.Future[Any]:
        return tell(self._pipe, node, message)

    async def ask_to_cancel(self, web: str, job: str) -> bool:
        """Ask the web process that answers a job to end it. False if that process has no reply stream, so is
        gone (or Redis was emptied a moment ago)."""
        return await self._ask(web, _CANCEL, job)

    async def ask_to_watch(self, web: str, text: str) -> bool:
        """Ask the web process that answers a job to relay it (see `jobs.relaying`). False as above."""
        return await self._ask(web, _WATCH, text)

    async def _ask(self, web: str, what: bytes, text: str) -> bool:
        text = f"{text} {_proof(web, what, text)}"
        return await self._pipe.send("XADD", reply_key(web), "NOMKSTREAM", "*", what, text) is not None

    # -- the two loops -------------------------------------------------------------------------------

    async def _stay_alive(self) -> None:
        while True:
            try:
                await self.open()
            except redis.RedisError as e:
                log.warning("redis unavailable error=%s", type(e).__name__)
            await background.pause(_REFRESH_SECONDS)

    async def _read_forever(self, pipe: Pipe) -> None:
        stream = OwnStream(pipe, reply_key(self.web), _PER_READ, _BLOCK_MS)
        pause = 0.05
        while True:
            begun = time.monotonic()
            try:
                await stream.follow(self._take_all)
            except (redis.RedisError, OSError) as e:
                if time.monotonic() - begun > 2 * _BLOCK_MS / 1000:  # it had been read
                    pause = 0.05
                log.warning(
                    "reply stream unreadable error=%s, trying again in %.1f s", type(e).__name__, pause
                )
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)

    def _take_all(self, entries: list[dict[bytes, bytes]]) -> None:
        for fields in entries:
            try:
                self._take(fields)
            except Exception:  # one bad message must not silence every other job
                log.exception("reply dropped")

    # -- one entry -----------------------------------------------------------------------------------

    def _take(self, fields: dict[bytes, bytes]) -> None:
        packed = fields.get(FIELD)
        if packed is not None:
            try:
                replies = decode_replies(packed)
            except msgspec.MsgspecError:
                self.stale += 1
                return
            for reply in replies:
                self._hand_over(reply)
        elif _PLACED in fields:
            self._take_placed(fields[_PLACED].decode("ascii", "replace"))
        else:
            for what, take in ((_CANCEL, self._on_cancel), (_WATCH, self.on_watch)):
                if what in fields:
                    self._take_asked(what, fields[what].decode("ascii", "replace"), take)

    def _hand_over(self, reply: Chunk | Done | Failed) -> None:
        job, seq = self._jobs.get(reply.job), reply.seq
        if job is None or job.attempt != reply.attempt or job.lease != reply.lease or seq < job.next_seq:
            self.stale += 1
        elif seq > job.next_seq:
            job.on_gap()
        else:
            job.next_seq = seq + 1
            job.on_reply(reply)

    def _take_placed(self, text: str) -> None:
        # Written by the board ("<job>:<attempt> <lease> <node>"). A node could append such an entry too,
        # but the lease is one it cannot know before the work has reached it.
        ref, _, rest = text.partition(" ")
        name, _, attempt = ref.partition(":")
        lease, _, node = rest.partition(" ")
        job = self._jobs.get(name)
        if job is None or str(job.attempt) != attempt or job.lease.hex() != lease:
            self.stale += 1
            return
        job.on_placed(node)
        self.on_placed(name)

    def _take_asked(self, what: bytes, said: str, take: Callable[[str], object]) -> None:
        # Nodes may append to this stream too, so another web process proves itself. It says nothing new the
        # second time; and no node can read what it would repeat.
        text, _, proof = said.rpartition(" ")
        if not hmac.compare_digest(proof.encode(), _proof(self.web, what, text).encode()):
            self.stale += 1
            return
        take(text)


def reading_pipe(block_ms: int) -> Pipe:
    """A connection for reads that may wait for so long."""
    patience = ANSWER_SECONDS + block_ms / 1000
    return Pipe(asynchronous(answer_seconds=patience), patience)


class OwnStream:
    """A stream that this process alone reads: each entry once, and deleted with the next read."""

    def __init__(self, pipe: Pipe, key: str, per_read: int, block_ms: int) -> None:
        self._pipe, self._key, self._bounds = pipe, key, ("COUNT", per_read, "BLOCK", block_ms)
        self._cursor = "0-0"
        self._read: list[bytes] = []

    async def next(self) -> list[dict[bytes, bytes]]:
        """The fields of what is new; nothing if nothing came. Raises `redis.RedisError`."""
        asked = [self._pipe.send(*command) for command in self._commands()]
        return self._noted((await asyncio.gather(*asked))[-1])

    async def follow(self, take: Callable[[list[dict[bytes, bytes]]], None]) -> None:
        """The same for ever, without a task that wakes for each (see `Pipe.follow`)."""
        await self._pipe.follow(self._commands, lambda answer: take(self._noted(answer)))

    def _commands(self) -> list[tuple[Any, ...]]:
        deletion = [("XDEL", self._key, *self._read)] if self._read else []
        return [*deletion, ("XREAD", *self._bounds, "STREAMS", self._key, self._cursor)]

    def _noted(self, answer: Any) -> list[dict[bytes, bytes]]:
        entries = entries_of(answer)
        self._read = [entry for entry, _ in entries]
        if entries:
            self._cursor = self._read[-1].decode()
        return [fields for _, fields in entries]


def tell(pipe: Pipe, node: str, message: Control) -> asyncio.Future[Any]:
    """Append to a node's control stream."""
    return pipe.send("XADD", control_key(node), "MAXLEN", "~", 10_000, "*", FIELD, encode(message))


def _proof(web: str, what: bytes, text: str) -> str:
    """What only the coordinator's processes can know: they share the server's secret."""
    return credentials.digest(f"{what.decode()} {text} at {web}")


def entries_of(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREAD of one stream, whichever protocol version the client speaks."""
    if not answer:
        return []
    streams = answer.values() if isinstance(answer, dict) else [pair[1] for pair in answer]
    found = []
    for entries in streams:
        if (
            entries
            and isinstance(entries[0], list)
            and entries[0]
            and isinstance(entries[0][0], list | tuple)
        ):
            entries = entries[0]  # RESP3 wraps once more
        for entry, fields in entries:
            if fields is None:
                continue
            if not isinstance(fields, dict):
                fields = dict(zip(fields[::2], fields[1::2], strict=True))
            found.append((entry, fields))
    return found
