"""The application behind a real server on a socket, as the coordinator starts it, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from gputorrent.connection import Connection


@dataclass
class Listening:
    server: uvicorn.Server
    task: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    @property
    def connections(self) -> set[Any]:
        return self.server.server_state.connections

    def shut_down(self) -> None:
        """What SIGTERM does: those under way are answered, then `task` ends."""
        self.server.should_exit = True


@asynccontextmanager
async def listening(application: Any, **how: Any) -> AsyncIterator[Listening]:
    """Until the block ends; then it is shut down. Raises AssertionError if it does not start."""
    config = uvicorn.Config(
        application,
        port=0,
        http=Connection,
        lifespan="on",
        log_config=None,
        server_header=False,
        **{"access_log": False, "timeout_graceful_shutdown": 5, **how},
    )
    server = uvicorn.Server(config)
    here = Listening(server, asyncio.create_task(server._serve()))
    async with asyncio.timeout(20):
        while not server.started:
            assert not here.task.done(), "the server has not started"
            await asyncio.sleep(0.005)
    try:
        yield here
    finally:
        here.shut_down()
        await here.task
