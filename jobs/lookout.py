"""Jobs whose progress is seen in the ledger alone, looked at together: one query for all who wait, twice a
second, and none while nobody does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from django.db import DatabaseError, InterfaceError

from gputorrent import background, ledger
from jobs.models import TERMINAL, Job

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class Seen(NamedTuple):
    state: str
    node: str  # its name; empty while there is none

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


class Lookout:
    """Owns the loop, which lasts while somebody waits."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[Seen | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def next(self, job_id: str) -> Seen | None:
        """Where a job stands, within about `LOOK_SECONDS`; longer while the database is away. None if there
        is no such job."""
        found = self._waiting.get(job_id)
        if found is None:
            found = self._waiting[job_id] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="lookout.look")
        return await asyncio.shield(found)

    async def stop(self) -> None:
        await background.end([self._task])

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            asked = list(self._waiting)
            try:
                seen = await ledger.ask(_read, asked)
            except (DatabaseError, InterfaceError) as e:
                log.warning("ledger unavailable error=%s", type(e).__name__)
                continue
            for job_id in asked:
                self._waiting.pop(job_id).set_result(seen.get(job_id))


def _read(job_ids: list[str]) -> dict[str, Seen]:
    rows = Job.objects.filter(pk__in=job_ids).order_by().values_list("pk", "state", "node__name")
    return {pk: Seen(state, node or "") for pk, state, node in rows}
