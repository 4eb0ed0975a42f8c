"""A blocking question that many may ask at once, and that is asked once at a time.

A database that is frozen blocks the thread that asks it until it is back. Probes and scrapes come every few
seconds; with a thread for each there would soon be none left for anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """Await it under a time limit: whoever gives up leaves the question to the next who asks."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._call = call
        self._asking: asyncio.Task[Answer] | None = None

    async def __call__(self) -> Answer:
        """Raises what the question raises."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._call))
            self._asking.add_done_callback(_heard)
        return await asyncio.shield(self._asking)


def _heard(asked: asyncio.Task[Answer]) -> None:
    if not asked.cancelled():
        asked.exception()  # whoever asked may have gone: it must not come up as never retrieved
