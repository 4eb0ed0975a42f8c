"""How each web process does: published by the process itself, read by whichever answers for all.

`gt:metrics:processes` is a hash from the process's wire name to `Figures` in MessagePack. An entry counts
while the process's sign of life (`jobs.mailbox.web_key`) is there.
"""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec
import psutil
from msgspec import Struct

from gputorrent.redis import Pipe
from jobs.dispatch import Dispatcher
from jobs.mailbox import web_key

PROCESSES = "gt:metrics:processes"


class Figures(Struct, frozen=True, array_like=True):
    process: str  # host:pid
    started_at: float  # seconds since the epoch
    resident_bytes: int
    open_fds: int
    threads: int
    cpu_seconds: float  # user and system, since start
    jobs: int  # that callers wait for
    records_behind: int


_decode = msgspec.msgpack.Decoder(Figures).decode


class Vitals:
    """The figures of this process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._process = psutil.Process()

    def figures(self) -> Figures:
        """Takes a tenth of a millisecond, and longer with thousands of open files."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            return Figures(
                process=f"{socket.gethostname()}:{os.getpid()}",
                started_at=self._process.create_time(),
                resident_bytes=self._process.memory_info().rss,
                open_fds=self._process.num_fds(),
                threads=self._process.num_threads(),
                cpu_seconds=times.user + times.system,
                jobs=len(self._dispatcher.jobs),
                records_behind=self._dispatcher.recorder.behind,
            )

    async def publish(self) -> None:
        """Raises `redis.RedisError`."""
        packed = msgspec.msgpack.encode(self.figures())
        await self._dispatcher.pipe.send("HSET", PROCESSES, self._dispatcher.mailbox.web, packed)


async def read(pipe: Pipe) -> list[Figures]:
    """Of all processes that live. Raises `redis.RedisError`."""
    entries = await pipe.send("HGETALL", PROCESSES)
    webs = [web.decode() for web in entries]
    alive = await asyncio.gather(*(pipe.send("EXISTS", web_key(web)) for web in webs))
    gone = [web for web, lives in zip(webs, alive, strict=True) if not lives]
    if gone:
        await pipe.send("HDEL", PROCESSES, *gone)
    return sorted((_decode(entries[w.encode()]) for w in webs if w not in gone), key=lambda f: f.process)
