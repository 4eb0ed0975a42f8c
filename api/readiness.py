"""Whether the process can do its work: Redis and the ledger answer, within 2 s each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import redis
from django.db import DatabaseError, InterfaceError, connection

from api.shared import Shared
from jobs.dispatch import Dispatcher
from nodes.models import Node

LIMIT_SECONDS = 2.0


class Readiness:
    """The check of one process."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._ledger = Shared(_ask)

    async def look(self) -> dict[str, str]:
        """'ok', or what is wrong, for each part."""
        broker, ledger = await asyncio.gather(
            _state(self._dispatcher.pipe.send("PING")), _state(self._ledger())
        )
        return {"redis": broker, "database": ledger}


async def _state(answer: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await answer
    except (redis.RedisError, DatabaseError, InterfaceError, TimeoutError) as e:
        return type(e).__name__
    return "ok"


def _ask() -> None:
    """A query on a table of ours: a database that was never migrated is not ready either."""
    try:
        Node.objects.exists()
    finally:
        connection.close()
