"""Jobs that are watched at another web process than the one which answers them: the part of the one that
answers.

The other one asks by an entry in our reply stream, with an HMAC as for a cancellation, and again every 2 s
for as long as somebody watches there; what comes of the job goes into its stream ``gt:watch:<web>``, which no
node can reach. So answers pass through Redis only while they are watched from afar; what was read is deleted.

An entry says after which chunk it goes on, so whoever reads notices what the wire lost, and asks for it again
from where it is. A question that brings nothing new is answered by an empty entry, which shows the same, and
that we live.
"""

from __future__ import annotations

import asyncio
import logging
import time

import redis
from msgspec import Struct

from gputorrent import background
from gputorrent.redis import Pipe
from jobs.mailbox import Mailbox
from jobs.tail import Reader, Standing, Tail, Tails
from worker_agent.contract import FIELD, encode

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
LAPSE_SECONDS = 10.0
"""Nobody asked for so long: whoever watched has gone."""
_MOST_ENTRIES = 1000
_REDIS_AWAY_SECONDS = 0.5


def watch_key(web: str) -> str:
    """The stream in which a web process gets what others relay to it."""
    return f"gt:watch:{web}"


class Relayed(Struct, frozen=True, array_like=True):
    """Chunks of a job that follow number `before`; see `jobs.tail.Batch`. `standing` None: as before.
    `gone`: we know nothing of the job (any more)."""

    job: str
    before: int = 0
    jumped: bool = False
    chunks: list[bytes] = []
    standing: Standing | None = None
    gone: bool = False


def question(job: str, web: str, after: int, *, anew: bool) -> str:
    """What `Relaying.asked` understands."""
    return f"{job} {web} {after} {anew:d}"


class _Mirror:
    """One job for one other process."""

    def __init__(self, job: str, web: str, tail: Tail, after: int) -> None:
        self.job, self.web, self.tail = job, web, tail
        self.reader = Reader(tail, after)
        self.asked_at = time.monotonic()
        self.owes_a_sign = True
        self.task: asyncio.Task[None] | None = None


class Relaying:
    """All that this process relays to others."""

    def __init__(self, pipe: Pipe, mailbox: Mailbox, tails: Tails) -> None:
        mailbox.on_watch = self.asked
        self.lapse_seconds = LAPSE_SECONDS
        self._pipe = pipe
        self._tails = tails
        self._mirrors: dict[tuple[str, str], _Mirror] = {}
        self._answers: set[asyncio.Task[bool]] = set()

    async def stop(self) -> None:
        await background.end([*(m.task for m in self._mirrors.values()), *self._answers])

    def asked(self, text: str) -> None:
        """Another web process watches a job. Raises `ValueError` for what is no question."""
        job, web, after, anew = text.split(" ")
        tail = self._tails.get(job)
        mirror = self._mirrors.get((job, web))
        if mirror is not None and anew != "1":
            mirror.asked_at = time.monotonic()
            mirror.owes_a_sign = True
            mirror.tail.wake()
            return
        if mirror is not None and mirror.task is not None:
            mirror.task.cancel()
        if tail is None:
            answer = asyncio.create_task(self._send(web, Relayed(job, gone=True), time.monotonic()))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
            return
        mirror = self._mirrors[job, web] = _Mirror(job, web, tail, int(after))
        mirror.task = asyncio.create_task(self._relay(mirror), name="relaying.relay")

    async def _relay(self, mirror: _Mirror) -> None:
        tail, reader, told = mirror.tail, mirror.reader, None
        try:
            while (since := time.monotonic() - mirror.asked_at) < self.lapse_seconds:
                seen = tail.version
                standing = tail.standing
                batch = reader.take()
                over = standing is not None and standing.ended
                if over and not reader.at_end:
                    standing = told
                if batch.chunks or batch.jumped or standing != told or mirror.owes_a_sign:
                    mirror.owes_a_sign = False
                    news = Relayed(mirror.job, *batch, standing=standing if standing != told else None)
                    if not await self._send(mirror.web, news, mirror.asked_at):
                        return
                    told = standing
                    if over and reader.at_end:
                        return
                elif reader.at_end:
                    await tail.changed(seen, self.lapse_seconds - since)
        finally:
            if self._mirrors.get((mirror.job, mirror.web)) is mirror:
                del self._mirrors[mirror.job, mirror.web]

    async def _send(self, web: str, news: Relayed, asked_at: float) -> bool:
        """False if nobody reads there any more."""
        while time.monotonic() - asked_at < self.lapse_seconds:
            try:
                bounds = ("NOMKSTREAM", "MAXLEN", "~", _MOST_ENTRIES)
                return (
                    await self._pipe.send("XADD", watch_key(web), *bounds, "*", FIELD, encode(news))
                    is not None
                )
            except redis.RedisError as e:
                log.warning("redis unavailable error=%s", type(e).__name__)
                await asyncio.sleep(_REDIS_AWAY_SECONDS)
        return False
