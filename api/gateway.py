"""All that one web process needs to answer: made at start-up, handed to every request by the ASGI server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import redis
from django.conf import settings

from api.authentication import Caller, KeyRing
from api.errors import ApiError
from api.limits import Limiter, Permit
from gputorrent import background
from jobs.dispatch import Dispatcher
from jobs.interactive import Request
from jobs.watch import Watch

log = logging.getLogger(__name__)

STATE = "gateway"
_START_SECONDS = 15.0


class Gateway:
    """The dispatcher, its watch, the keys and their limits."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.watch = Watch(self.dispatcher)
        self.keys = KeyRing()
        self.limiter = Limiter(self.dispatcher.pipe, self.dispatcher.mailbox.web)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect. Raises `redis.RedisError` when Redis stays away for 15 s."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        while True:
            try:
                await self.dispatcher.start()
                await self.watch.start()
                break
            except redis.RedisError as e:
                if loop.time() > deadline:
                    raise
                log.warning("redis unavailable error=%s, trying again", type(e).__name__)
                await asyncio.sleep(0.5)
        await self.keys.refresh(self.dispatcher.pipe)
        self._task = asyncio.create_task(self._refresh_keys(), name="gateway.keys")

    async def stop(self) -> None:
        await background.end([self._task])
        await self.watch.stop()
        await self.dispatcher.stop()

    async def _refresh_keys(self) -> None:
        while True:
            await asyncio.sleep(settings.SNAPSHOT_SECONDS)
            await self.keys.refresh(self.dispatcher.pipe)
            await self.limiter.catch_up()

    async def admit(self, caller: Caller, request: Request, deferred: str = "") -> Permit | None:
        """Count a request against its key's limits, if there are any; see `Limiter.admit`."""
        found = self.dispatcher.snapshot.by_model.get(request.model, ())
        context = max((model.max_model_len for _, model in found), default=0)
        return await self.limiter.admit(caller, request, context=context, deferred=deferred)


def of(scope: Mapping[str, Any]) -> Gateway:
    """The gateway of the process that serves this request. Raises `ApiError` 503 where there is none."""
    gateway = scope.get("state", {}).get(STATE)
    if gateway is None:
        raise ApiError(
            503,
            "service_unavailable_error",
            "no_gateway",
            "the server was started without its gateway: run it under uvicorn (make up)",
        )
    return gateway
