"""What is left to do for jobs whose answers are complete: done behind the answers, and for many together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from jobs.interactive import InteractiveJob

log = logging.getLogger(__name__)

REST_SECONDS = 0.005
"""How long a job may rest. Who asks one thing after the other sends the next as soon as he has the answer: it
goes first, and what is left to do for the last one is done while a node is at it. Long enough for it to come
and be placed."""


class Afterwards:
    """The jobs of one process that rest. `see_to` does what is left to do for one."""

    def __init__(self, see_to: Callable[[InteractiveJob], None]) -> None:
        self._see_to = see_to
        self._resting: list[InteractiveJob] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, job: InteractiveJob, *, soon: bool) -> None:
        """Its answer is complete. `soon`: before anything that comes after that, since others may wait for
        what it gives back."""
        if soon:
            asyncio.get_running_loop().call_soon(self._see_to, job)
            return
        self._resting.append(job)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REST_SECONDS, self.all)

    def all(self) -> None:
        """See to all that rest, now: when there is nothing better to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        jobs, self._resting = self._resting, []
        for job in jobs:
            try:
                self._see_to(job)
            except Exception as e:  # the request that has time for it is another's
                log.error("not seen to the end job=%s", job.id, exc_info=e)
