"""The part of an ASGI server that httpx's transport leaves out: start-up, shutdown, their shared state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running(application: Any) -> AsyncIterator[Any]:
    """The application between its start-up and its shutdown. Raises AssertionError if it does not start."""
    state: dict[str, Any] = {}
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    ask: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(application({"type": "lifespan", "state": state}, ask.get, said.put))
    await ask.put({"type": "lifespan.startup"})
    answer = await asyncio.wait_for(said.get(), 20)
    assert answer["type"] == "lifespan.startup.complete", answer

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "state": state}, receive, send)

    try:
        yield app
    finally:
        await ask.put({"type": "lifespan.shutdown"})
        answer = await asyncio.wait_for(said.get(), 20)
        await life
        assert answer["type"] == "lifespan.shutdown.complete", answer
