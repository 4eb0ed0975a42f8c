from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import redis

from gputorrent.asgi import application
from nodes import view
from tests.api.lifespan import running


@pytest.fixture(autouse=True)
def _stage(wire: redis.Redis, quick: None) -> None:
    """Every test here may touch Redis, which holds nothing but the sign that it is ours."""
    wire.set(view.ALIVE, "1")


@pytest.fixture(params=[True, False], ids=["lean", "django"])
def door(request: pytest.FixtureRequest, settings: Any) -> str:
    """Completions by the lean door and by Django REST Framework's."""
    settings.LEAN_DOOR = request.param
    return "lean" if request.param else "django"


@pytest.fixture
async def serve(ledger: None, settings: Any) -> AsyncIterator[Callable[[], Awaitable[httpx.AsyncClient]]]:
    """Start the application in this process, once the test has set the stage; a client of it comes back."""
    settings.SNAPSHOT_SECONDS = 0.02
    settings.RECORD_SECONDS = 0.02
    async with AsyncExitStack() as stack:

        async def start() -> httpx.AsyncClient:
            app = await stack.enter_async_context(running(application))
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=20)
            return await stack.enter_async_context(client)

        yield start
