"""What the jobs of a web process have answered lately: kept in memory for those who come to watch a stream,
or come back to one after their connection broke.

Every stream keeps its last `TAIL_BYTES`, until `TAIL_SECONDS` after its end; all of them together stay within
`TAIL_TOTAL_BYTES`. Nothing of it reaches a disk, nor Redis unless somebody watches at another web process
(`jobs.relaying`). Chunks are numbered from 1, as the events of the stream that carry data, ``[DONE]`` not
among them; so everybody who watches a job has the same numbers. They are counted when somebody looks, or
when they fall out of the window: a stream that nobody watches pays for an append.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple, Protocol

from django.conf import settings
from msgspec import Struct

from jobs.models import TERMINAL

_PART_COSTS = 64
"""Bytes of memory that a part takes beside its own, about: of Python's object and its place in the deque."""
BATCH_BYTES = 64 * 1024


class Standing(Struct, frozen=True, array_like=True):
    """Where a job stands. `node` is an id; empty while it waits."""

    state: str
    node: str = ""
    error_code: str = ""
    error_message: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


class _Watched(Protocol):
    """What a tail reads of its job."""

    id: str
    error_code: str
    error_message: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def state(self) -> str: ...
    @property
    def node(self) -> str: ...


class Batch(NamedTuple):
    """Chunks that follow number `before`. `jumped`: those in front of them are not kept any more."""

    before: int
    jumped: bool
    chunks: list[bytes]


class Tail:
    """The last of one job's answer, and where it stands. All calls come from the event loop."""

    __slots__ = (
        "_among",
        "_job",
        "_news",
        "_parts",
        "_told",
        "dropped",
        "first",
        "key",
        "lost",
        "size",
        "version",
    )

    def __init__(self, among: Tails, job: _Watched | None = None, key: int | None = None) -> None:
        self.key = key  # whose job it is: the primary key of an ApiKey
        self.size = 0
        self.first = 0  # which of all its parts is the oldest kept
        self.dropped = 0  # chunks in the parts before that one
        self.version = 0  # grows with whatever is new
        self.lost = False  # of a job of another process: it says nothing of it (any more)
        self._among = among
        self._job = job
        self._told: Standing | None = None
        self._parts: deque[bytes] = deque()
        self._news: list[asyncio.Future[None]] = []

    @property
    def standing(self) -> Standing | None:
        """None while nothing was heard of it, which is never so of this process's own jobs."""
        job = self._job
        if job is None:
            return self._told
        return Standing(
            str(job.state),
            job.node,
            job.error_code,
            job.error_message,
            job.prompt_tokens,
            job.completion_tokens,
        )

    @property
    def end(self) -> int:
        """One more than the number of its newest part."""
        return self.first + len(self._parts)

    def part(self, number: int) -> bytes:
        return self._parts[number - self.first]

    def add(self, data: bytes) -> None:
        """Whole server-sent events, as they came. Called for each part of every stream."""
        among, cost = self._among, len(data) + _PART_COSTS
        self._parts.append(data)
        self.size += cost
        among.size += cost
        if self.size > among.each or among.size > among.most:
            among.trim(self)
        self.version += 1
        if self._news:
            self._wake_all()

    def tell(self, standing: Standing) -> None:
        """From now on this is where it stands, whatever becomes of its job."""
        self._told, self._job = standing, None
        self.wake()

    def jump_to(self, number: int) -> None:
        """What was kept is old: the next part begins after chunk `number`."""
        self.clear()
        self.first += 1  # as if a part had been there: else who has read all others would not notice
        self.dropped = number
        self.wake()

    def freeze(self) -> None:
        """Let go of the job, which holds the prompt."""
        if (standing := self.standing) is not None:
            self.tell(standing)

    def wake(self) -> None:
        """Something other than its parts has changed."""
        self.version += 1
        if self._news:
            self._wake_all()

    def _wake_all(self) -> None:
        for waiter in self._news:
            if not waiter.done():
                waiter.set_result(None)
        self._news.clear()

    async def changed(self, since: int, seconds: float | None = None) -> None:
        """Wait until the version is another than `since`, or for so many seconds."""
        if self.version != since:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.append(waiter)
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        finally:
            waiter.cancel()
            if waiter in self._news:
                self._news.remove(waiter)

    def drop_oldest(self) -> None:
        part = self._parts.popleft()
        # As many as `chunks_in` would find: what is JSON has no line feeds.
        self.dropped += part.startswith(b"data:") + part.count(b"\ndata:") - part.endswith(b"[DONE]\n\n")
        self.first += 1
        cost = len(part) + _PART_COSTS
        self.size -= cost
        self._among.size -= cost

    def clear(self) -> None:
        """Keep nothing of it."""
        while self._parts:
            self.drop_oldest()

    def __len__(self) -> int:
        return len(self._parts)

    def __bool__(self) -> bool:
        return True


class Reader:
    """Reads a tail from a chunk's number on, in order, each once."""

    def __init__(self, tail: Tail, after: int = 0) -> None:
        self.seq = after
        """The number of the last chunk that was read, or is not wanted."""
        self._tail = tail
        self._part = -1
        self._count = 0  # chunks before that part

    @property
    def at_end(self) -> bool:
        """Whether all that there is has been read."""
        return self._part >= self._tail.end

    def take(self, most_bytes: int = BATCH_BYTES) -> Batch:
        """What follows, about so much at a time."""
        tail, jumped = self._tail, False
        if self._part < tail.first:
            self._part, self._count = tail.first, tail.dropped
            if self._count > self.seq:
                self.seq, jumped = self._count, True
        before, size = self.seq, 0
        chunks: list[bytes] = []
        while self._part < tail.end and size < most_bytes:
            for chunk in chunks_in(tail.part(self._part)):
                self._count += 1
                if self._count > self.seq:
                    self.seq = self._count
                    chunks.append(chunk)
                    size += len(chunk)
            self._part += 1
        return Batch(before, jumped, chunks)


class Tails:
    """The tails of one process: those of jobs under way, and of streams that have just ended."""

    def __init__(self) -> None:
        self.each: int = settings.TAIL_BYTES
        self.most: int = settings.TAIL_TOTAL_BYTES
        self.seconds: float = settings.TAIL_SECONDS
        self.size = 0
        self._live: dict[str, Tail] = {}
        self._over: dict[str, tuple[float, Tail]] = {}  # in the order of their ends (monotonic seconds)

    def __len__(self) -> int:
        return len(self._live) + len(self._over)

    def begin(self, job: _Watched, key: int | None) -> Tail:
        """The tail of a new job."""
        tail = self._live[job.id] = Tail(self, job, key)
        return tail

    def get(self, job_id: str) -> Tail | None:
        tail = self._live.get(job_id)
        return tail or self._over.get(job_id, (0.0, None))[1]

    def over(self, job_id: str) -> None:
        """Nothing more comes of a job. What it answered is kept for a while."""
        tail = self._live.pop(job_id, None)
        if tail is None:
            return
        if tail.end:
            tail.freeze()
            self._over[job_id] = (time.monotonic(), tail)
        else:
            tail.wake()

    def expire(self, now: float) -> None:
        """Drop what ended too long ago, by the monotonic clock."""
        while self._over:
            job_id, (ended, tail) = next(iter(self._over.items()))
            if now - ended < self.seconds:
                return
            del self._over[job_id]
            tail.clear()

    def trim(self, tail: Tail) -> None:
        """Make room: of streams that have ended first, then of the one that has just grown, more than is
        needed now so that it is not asked for with each part. When memory is short each may have as much as
        any other, and at least its newest part."""
        while self.size > self.most and self._over:
            self._over.pop(next(iter(self._over)))[1].clear()
        fair = self.each
        if self.size > self.most:
            fair = min(self.each, self.most // (len(self._live) or 1))
        if tail.size > fair:
            fair -= fair // 16
        while (tail.size > fair or self.size > self.most) and len(tail) > 1:
            tail.drop_oldest()


def chunks_in(part: bytes) -> list[bytes]:
    """The data of server-sent events, each as it came: JSON. Comments and ``[DONE]`` are none. Those of
    `/v1/responses` have their type in a line before the data, and in the data again."""
    return [
        event[event.index(b"data:") + 5 :].strip()
        for event in part.split(b"\n\n")
        if event.startswith((b"data:", b"event:")) and b"data:" in event and not event.endswith(b"[DONE]")
    ]
