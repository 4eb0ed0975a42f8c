"""All that one web process needs to answer: made at start-up, handed to every request by the ASGI server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError

from api.authentication import Caller, KeyRing
from api.errors import ApiError
from api.exposition import Exposition
from api.limits import Limiter, Permit
from api.readiness import Readiness
from api.sockets import Sockets
from gputorrent import background
from jobs import cancelling
from jobs.dispatch import Dispatcher
from jobs.errors import KeyRevoked
from jobs.interactive import Request
from jobs.lookout import Lookout
from jobs.relaying import Relaying
from jobs.replicas import Replicas
from jobs.watch import Watch

log = logging.getLogger(__name__)

STATE = "gateway"
_START_SECONDS = 15.0
_UPLOADS_AT_ONCE = 2  # each holds one of the ledger's few threads for as long as it is stored


class Gateway:
    """The dispatcher, its watch, the keys and their limits."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.watch = Watch(self.dispatcher)
        self.keys = KeyRing()
        self.exposition = Exposition(self.dispatcher)
        self.readiness = Readiness(self.dispatcher)
        self.uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self.limiter = Limiter(self.dispatcher.pipe, self.dispatcher.mailbox.web)
        self.sockets = Sockets()
        self.lookout = Lookout()
        d = self.dispatcher
        self.relaying = Relaying(d.pipe, d.mailbox, d.tails)
        self.replicas = Replicas(d.pipe, d.mailbox, d.tails)
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

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
        await background.end([self._task, self._ending])
        await self.watch.stop()
        await self.lookout.stop()
        await self.replicas.stop()
        await self.relaying.stop()
        await self.limiter.stop()
        await self.dispatcher.stop()

    async def _refresh_keys(self) -> None:
        while True:
            await background.pause(settings.SNAPSHOT_SECONDS)
            gone = await self.keys.refresh(self.dispatcher.pipe)
            await self.limiter.catch_up()
            self._end_jobs_of_dead_keys()
            self.sockets.end_those_of_dead_keys(self.keys)
            if gone and (self._ending is None or self._ending.done()):
                self._ending = asyncio.create_task(self._end_asynchronous_jobs(), name="gateway.ending")

    def _end_jobs_of_dead_keys(self) -> None:
        """Those whose callers wait here; every look, since a key may also just expire."""
        jobs = self.dispatcher.jobs.values()
        used = {job.request.key for job in jobs if job.request.key is not None}
        dead = self.keys.dead(used) if used else used
        for job in [job for job in jobs if job.request.key in dead]:
            self.dispatcher.cancel(job.id, KeyRevoked())

    async def _end_asynchronous_jobs(self) -> None:
        """Those in the ledger: at once here, or with the next sweep."""
        try:
            await cancelling.end_those_of_dead_keys(self.dispatcher.board, self.dispatcher.pipe)
        except (DatabaseError, InterfaceError) as e:
            log.warning("ledger unavailable error=%s: the sweep ends a dead key's jobs", type(e).__name__)

    async def admit(self, caller: Caller, request: Request, deferred: str = "") -> Permit | None:
        """Count a request against its key's limits, if there are any; see `Limiter.admit`."""
        return await self.limiter.admit(caller, request, context=self._context(request), deferred=deferred)

    def ask_leave(self, caller: Caller, request: Request) -> Permit | None:
        """The same without waiting, see `Limiter.ask`."""
        if caller.limits is None:
            return None
        return self.limiter.ask(caller, caller.limits, request, context=self._context(request))

    def _context(self, request: Request) -> int:
        return self.dispatcher.outlook.longest_context(request.model)


def of(scope: Mapping[str, Any]) -> Gateway:
    """The gateway of the process that serves this request. Raises `ApiError` 503 where there is none."""
    gateway = scope.get("state", {}).get(STATE)
    if gateway is None:
        raise ApiError(
            "no_gateway", "the server was started without its gateway: run it under uvicorn (make up)"
        )
    return gateway
