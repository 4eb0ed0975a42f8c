"""One web process's dispatcher and watch; time passes only when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import redis

from jobs.dispatch import Dispatcher
from jobs.interactive import InteractiveJob, Request
from jobs.models import Job, JobState
from jobs.watch import Watch
from tests.jobs.scripted import until
from worker_agent.contract import Chunk, Done


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "path": "/v1/chat/completions",
        "model": "m",
        "body": b'{"model":"m","messages":[]}',
        "stream": True,
    }
    return Request(**{**fields, **changes})


class Asking:
    """A caller: its job once submitted, and the first of the answer."""

    def __init__(self, dispatcher: Dispatcher, wanted: Request) -> None:
        self.dispatcher = dispatcher
        self.job: InteractiveJob | None = None
        self.task = asyncio.create_task(self._ask(wanted))

    async def _ask(self, wanted: Request) -> Chunk | Done:
        self.job = await self.dispatcher.submit(wanted)
        return await self.dispatcher.first(self.job)

    async def first(self) -> Chunk | Done:
        return await asyncio.wait_for(self.task, 10)

    async def rest(self) -> list[bytes]:
        """What follows the first chunk. Raises what the stream ends with."""
        assert self.job
        return [data async for data in self.dispatcher.follow(self.job)]

    async def leave(self, *, at_once: bool = False) -> None:
        """Close the connection; `at_once` even while the board is being asked. Without it the job is known:
        its work may lie in a node's inbox before the answer that says so is back."""
        if not at_once:
            await until(lambda: self.job or self.task.done())
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Desk:
    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.watch = Watch(self.dispatcher)

    def ask(self, **wanted: Any) -> Asking:
        return Asking(self.dispatcher, request(**wanted))

    async def refresh(self) -> None:
        """What the watch does a few times a second for the snapshot."""
        await self.watch.refresh()

    async def look(self, later: float = 0.0, times: int = 1) -> None:
        """What the watch does a few times a second for the jobs, as if `later` seconds had passed."""
        await self.heard()
        for _ in range(times):
            self.watch.look(time.monotonic() + later)
            await self.settled()

    async def heard(self) -> None:
        """Until the board's answers to what was asked so far have arrived: a node may have read its work
        before the dispatcher hears that it was placed there."""
        with contextlib.suppress(redis.RedisError):
            await self.dispatcher.pipe.send("PING")
        for _ in range(3):
            await asyncio.sleep(0)

    async def settled(self) -> None:
        """Until the effects under way, and what was left to do for jobs that are over, have been done."""
        await asyncio.sleep(0)
        self.dispatcher._afterwards.all()
        while under_way := set(self.dispatcher._effect._under_way):
            await asyncio.wait(under_way)

    async def held(self) -> int:
        """Slots taken on the board."""
        await self.settled()
        return len(await self.dispatcher.board.held())

    async def cancelled(self, job: InteractiveJob, code: str) -> list[str]:
        """The outcomes of its attempts, once it is known to be cancelled and nothing is left of it."""
        row = await self.row(job)
        assert (row.state, row.error_code) == (JobState.CANCELLED, code)
        assert row.error_message == {"cancelled": "the job was cancelled", "client_closed": ""}[code]
        assert await self.held() == 0
        assert self.dispatcher.jobs == {}
        return [a.outcome for a in row.attempts.all()]

    async def row(self, job: InteractiveJob) -> Job:
        """The job's record in the ledger."""
        self.dispatcher._afterwards.all()
        await self.dispatcher.recorder.flush()
        return await Job.objects.prefetch_related("attempts").aget(pk=job.id)
