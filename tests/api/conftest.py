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
from tests.listening import listening


@pytest.fixture(autouse=True)
def _stage(wire: redis.Redis, quick: None) -> None:
    """Every test here may touch Redis, which holds nothing but the sign that it is ours."""
    wire.set(view.ALIVE, "1")


@pytest.fixture(params=["direct", "lean", "django"])
def door(request: pytest.FixtureRequest, settings: Any) -> str:
    """Completions past ASGI, by the lean door and by Django REST Framework's."""
    settings.LEAN_DOOR = request.param != "django"
    return str(request.param)


@pytest.fixture
async def serve(
    request: pytest.FixtureRequest, ledger: None, settings: Any
) -> AsyncIterator[Callable[[], Awaitable[httpx.AsyncClient]]]:
    """Start the application in this process, once the test has set the stage; a client of it comes back."""
    settings.SNAPSHOT_SECONDS = 0.02
    settings.RECORD_SECONDS = 0.02
    past_asgi = "door" in request.fixturenames and request.getfixturevalue("door") == "direct"
    async with AsyncExitStack() as stack:

        async def start() -> httpx.AsyncClient:
            if past_asgi:
                port = (await stack.enter_async_context(listening(application))).port
                client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
                return await stack.enter_async_context(client)
            app = await stack.enter_async_context(running(application))
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=20)
            return await stack.enter_async_context(client)

        yield start
