"""Writes the jobs of one web process behind, in batches: the request path never waits for the database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from django.conf import settings
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    close_old_connections,
    connection,
)

from gputorrent import background, ledger
from jobs import lifecycle
from jobs.accounting import Spent
from jobs.interactive import InteractiveJob

log = logging.getLogger(__name__)

_BATCH = 1000
_LIMIT = 200_000
_REST_SECONDS: Final = 0.00005
_AT_ONCE = 20
"""Rows made in one turn of the loop: a fifth of a millisecond in which nothing else happens there."""
_UNFIT: Final = (DataError, IntegrityError, OverflowError, UnicodeError)
"""What is raised for values that no column takes; trying again would hold up all the others for ever."""


class _Recorded(Protocol):
    recorded: bool


class Recorder:
    """`note` a job whenever it changed; its row follows within `RECORD_SECONDS` (0.25 s by default)."""

    def __init__(self) -> None:
        self._changed: dict[str, InteractiveJob] = {}
        self._writing: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Records given up since start: the database was away for too long, or would never take them."""

    def note(self, job: InteractiveJob) -> None:
        self._changed[job.id] = job

    @property
    def behind(self) -> int:
        """Records not yet written."""
        return len(self._changed)

    def start(self) -> None:
        self._task = asyncio.create_task(self._write_forever(), name="recorder")

    async def stop(self) -> None:
        """Write what is left."""
        await background.end([self._task])
        await self.flush()
        await self._in_thread(_disconnect)
        self._thread.shutdown()

    async def flush(self) -> None:
        """Write everything noted so far. Returns early, keeping the rest, when the database is away."""
        while self._changed and await self._write_batch():
            pass

    async def written(self, job_id: str) -> None:
        """Wait until what was noted of a job is in the ledger, or the ledger has failed to take it. Raises
        `LedgerTimeout`."""
        if job_id not in self._changed and job_id not in self._writing:
            return
        try:
            async with asyncio.timeout(ledger.ANSWER_SECONDS):
                # Shielded: a batch that is cancelled on its way would be lost.
                await asyncio.shield(asyncio.ensure_future(self._catch_up()))
        except TimeoutError:
            raise ledger.LedgerTimeout("the records are not written in time") from None

    async def _catch_up(self) -> None:
        await self.flush()
        await self._in_thread(lambda: None)  # behind the batch that was under way

    async def _write_forever(self) -> None:
        pause = settings.RECORD_SECONDS
        while True:
            await asyncio.sleep(pause)
            ok = await self._write_batch() if self._changed else True
            if len(self._changed) >= _BATCH and ok:
                pause = 0
            else:
                pause = settings.RECORD_SECONDS if ok else min(5.0, max(pause, 0.25) * 2)

    async def _write_batch(self) -> bool:
        ids = list(self._changed)[:_BATCH]
        batch = [self._changed.pop(i) for i in ids]
        self._writing.update(ids)
        try:
            try:
                await self._write(batch)
            except _UNFIT:
                await self._write_singly(batch)
        except (DatabaseError, InterfaceError) as e:
            log.warning(
                "ledger unavailable error=%s behind=%d", type(e).__name__, len(self._changed) + len(batch)
            )
            self._put_back(batch)
            return False
        finally:
            self._writing.difference_update(ids)
        return True

    def _put_back(self, batch: Sequence[InteractiveJob]) -> None:
        """Whatever changed meanwhile is newer; the rest is noted again, unless it has become too much."""
        for job in batch:
            if len(self._changed) < _LIMIT:
                self._changed.setdefault(job.id, job)
            else:
                self.dropped += 1

    async def _write(self, batch: Sequence[InteractiveJob]) -> None:
        jobs, attempts = [], []
        spent: dict[tuple[str, int], Spent] = {}
        stay: list[_Recorded] = []
        for n, job in enumerate(batch, 1):
            # It may be noted again with nothing new: its end was written while it rested (`jobs.afterwards`).
            # The database would refuse such a row, and all of the batch would be written again, singly.
            if not job.recorded:
                row, made = job.record()
                jobs.append(row)
                attempts += made
                closed = [t for t in job.tries if t.outcome]
                spent |= {(job.id, t.number): t.spent for t in closed}
                stay += closed
                if job.ended and all(t.outcome for t in job.tries):
                    stay.append(job)
            if n % _AT_ONCE == 0:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self._put_back(batch)
                    raise
        if not jobs:
            return
        # Where so much is to be written that the core is busy anyway, to change between the two costs more.
        pause = _rest if len(batch) + len(self._changed) < _BATCH else None
        await self._in_thread(lambda: _write(jobs, attempts, spent, pause))
        for each in stay:
            each.recorded = True

    async def _write_singly(self, batch: Sequence[InteractiveJob]) -> None:
        """Something in the batch can never be written: all but that is."""
        for job in batch:
            try:
                await self._write([job])
            except _UNFIT as e:
                log.error("record dropped job=%s error=%s", job.id, type(e).__name__)
                self.dropped += 1

    async def _in_thread(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _disconnect() -> None:
    connection.close()  # looked up here, in the thread whose connection it is


def _rest() -> None:
    """Leave the core to the loop, if it wants it. Where they have one, a thread that only computes keeps it
    until the kernel's clock ticks (every 4 ms, with 250 Hz), though a request has come meanwhile."""
    time.sleep(_REST_SECONDS)


def _write(jobs: list, attempts: list, spent: dict, pause: Callable[[], None] | None) -> None:
    # A connection that broke is opened anew. SQLite's break with an error only, and opening one for each
    # batch would be a tenth of what it costs.
    if connection.vendor != "sqlite" or connection.errors_occurred:
        close_old_connections()
    lifecycle.write_behind(jobs, attempts, spent, pause=pause)
