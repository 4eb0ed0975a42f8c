"""What became of asynchronous work, told over HTTP until the coordinator has heard it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from worker_agent import log
from worker_agent.backoff import Backoff
from worker_agent.contract import Done, Failed, Report, Work
from worker_agent.coordinator import Coordinator, Rejected, Unreachable

_logger = logging.getLogger(__name__)


class Reports:
    """One delivery for each attempt; a result replaces the word that it started, if that is still on its way.

    `on_refused(job, attempt)` is called when the coordinator does not want an attempt that has started.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        incarnation: Callable[[], int],
        on_refused: Callable[[str, int], None],
    ) -> None:
        self._coordinator, self._incarnation, self._on_refused = coordinator, incarnation, on_refused
        self._deliveries: dict[tuple[str, int], asyncio.Task[None]] = {}

    def put(self, work: Work, reply: Done | Failed | None) -> None:
        """Tell what became of `work` (None: it started); returns at once."""
        key = (work.job, work.attempt)
        if earlier := self._deliveries.get(key):
            earlier.cancel()
        task = asyncio.create_task(self._deliver(work, reply))
        self._deliveries[key] = task
        task.add_done_callback(lambda task: self._forget(key, task))

    def keys(self) -> list[str]:
        """``job:attempt`` of all whose word is not delivered yet."""
        return [f"{job}:{attempt}" for job, attempt in self._deliveries]

    async def flush(self, seconds: float) -> bool:
        """Wait until all is delivered; False if that took longer."""
        if not self._deliveries:
            return True
        _, late = await asyncio.wait(self._deliveries.values(), timeout=seconds)
        return not late

    async def close(self) -> None:
        """Give up what is not delivered."""
        tasks = list(self._deliveries.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._deliveries.get(key) is task:
            del self._deliveries[key]

    async def _deliver(self, work: Work, reply: Done | Failed | None) -> None:
        backoff = Backoff()
        while True:
            report = Report(self._incarnation(), work.job, work.attempt, work.lease, reply)
            try:
                await self._coordinator.report(report)
                return
            except Unreachable as error:
                pause = max(backoff.pause(), error.retry_after)
            except Rejected as error:
                if error.status != 401 and error.code != "unknown_node":
                    log.event(_logger, logging.WARNING, "report refused", job=work.job, why=error.code)
                    if reply is None:
                        self._on_refused(work.job, work.attempt)
                    return
                pause = backoff.pause()  # until the agent has registered again
            await asyncio.sleep(pause)
