"""This agent's standing with the coordinator: registering (the first time, and again), and beating."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from worker_agent import __version__, hardware, log
from worker_agent.backoff import Backoff
from worker_agent.contract import (
    PROTOCOL,
    BeatReply,
    Goodbye,
    Heartbeat,
    ModelReport,
    Register,
    Registered,
)
from worker_agent.coordinator import Coordinator, Rejected, Unreachable
from worker_agent.errors import AgentError
from worker_agent.identity import Identity
from worker_agent.settings import Settings

_logger = logging.getLogger(__name__)

FATAL_ON_BEAT = frozenset({403, 409, 426})
"""Revoked; superseded by a newer start, or a clone; too old. Anything else that is refused is tried again."""


class Session:
    """Between `register` and `goodbye`."""

    def __init__(
        self, settings: Settings, identity: Identity, gpus: hardware.Gpus, coordinator: Coordinator
    ) -> None:
        self._settings, self._identity, self._gpus = settings, identity, gpus
        self._coordinator = coordinator
        self._instance = secrets.token_hex(16)
        self._registered: Registered | None = None
        self._now = asyncio.Event()
        hardware.cpu_usage()  # the first reading has nothing to compare with

    @property
    def incarnation(self) -> int:
        """Which start of this node this is; 0 before the first registration."""
        return self._registered.incarnation if self._registered else 0

    def beat_now(self) -> None:
        """Something changed that the coordinator should hear at once."""
        self._now.set()

    async def register(self, models: list[ModelReport], patience: float | None) -> Registered:
        """Register, trying for `patience` seconds (None: for as long as it takes) to reach the coordinator.

        Raises `Rejected` or another `AgentError`.
        """
        loop = asyncio.get_running_loop()
        deadline = None if patience is None else loop.time() + patience
        backoff = Backoff(most=5.0)
        clone_waited = False
        while True:
            try:
                return await self._register_once(models)
            except Unreachable as error:
                pause = max(backoff.pause(), error.retry_after)
                if deadline is not None and loop.time() + pause > deadline:
                    raise AgentError(
                        f"cannot reach the coordinator at {self._settings.coordinator} ({error}): check the "
                        "URL and that it runs"
                    ) from error
                log.event(_logger, logging.WARNING, "coordinator not reached, trying again", why=str(error))
            except Rejected as error:
                if error.code != "identity_in_use" or clone_waited:
                    raise
                # Ourselves of a moment ago, or a second agent with a copy of our credential: time tells.
                clone_waited = True
                pause = error.retry_after or 10.0
                log.event(_logger, logging.WARNING, "this identity is in use", why=str(error), wait=pause)
            await asyncio.sleep(pause)

    async def beat_for_ever(
        self,
        figures: Callable[[], Awaitable[Heartbeat]],
        apply: Callable[[BeatReply], Awaitable[None]],
        again: Callable[[], Awaitable[None]],
    ) -> None:
        """Beat regularly, and when told `beat_now`; `again` registers anew. Raises a final `Rejected`."""
        backoff = Backoff()
        away = False
        while True:
            assert self._registered is not None
            pause = self._registered.heartbeat_seconds
            self._now.clear()
            try:
                await apply(await self._coordinator.beat(await figures()))
                if away:
                    log.event(_logger, logging.INFO, "the coordinator is back")
                away = False
                backoff.reset()
            except Unreachable as error:
                if not away:
                    log.event(_logger, logging.WARNING, "heartbeat not heard, trying again", why=str(error))
                away = True
                await asyncio.sleep(min(pause, max(backoff.pause(), error.retry_after)))
                continue
            except Rejected as error:
                if error.code == "unknown_node" or error.status == 401:
                    log.event(_logger, logging.WARNING, "the coordinator does not know us, registering again")
                    await again()
                    continue
                if error.status in FATAL_ON_BEAT:
                    raise
                log.event(_logger, logging.ERROR, "heartbeat refused", code=error.code, why=str(error))
            try:
                async with asyncio.timeout(pause):
                    await self._now.wait()
            except TimeoutError:
                pass

    async def beat_once(self, message: Heartbeat) -> None:
        """One beat, for what it is worth."""
        try:
            await self._coordinator.beat(message)
        except (Unreachable, Rejected) as error:
            log.event(_logger, logging.WARNING, "last heartbeat not heard", why=str(error))

    async def goodbye(self, reason: str) -> None:
        """Say that we stop, for what it is worth."""
        if self._registered is None:
            return
        try:
            async with asyncio.timeout(3.0):
                await self._coordinator.goodbye(Goodbye(self.incarnation, reason[:2000]))
        except (Unreachable, Rejected, TimeoutError) as error:
            log.event(_logger, logging.WARNING, "goodbye not heard", why=str(error))

    async def _register_once(self, models: list[ModelReport]) -> Registered:
        credential, token = self._identity.credential, self._settings.token
        if credential is None and not token:
            raise AgentError(
                f"this node is not enrolled at {self._settings.coordinator}: give an enrolment token with "
                "--token (made in the coordinator's admin)"
            )
        if credential is None:
            return self._accept(await self._coordinator.register(self._message(models, token=token)))
        try:
            message = self._message(models, node=credential.node, secret=credential.secret)
            return self._accept(await self._coordinator.register(message))
        except Rejected as error:
            if error.code != "unknown_node":
                raise
            self._identity.forget()
            if not token:
                raise AgentError(
                    f"the coordinator at {self._settings.coordinator} does not know this node any more: "
                    "enrol it again with --token"
                ) from error
            log.event(_logger, logging.WARNING, "the stored credential is not known, enrolling anew")
            return await self._register_once(models)

    def _message(
        self, models: list[ModelReport], *, token: str = "", node: str | None = None, secret: str = ""
    ) -> Register:
        return Register(
            protocol=PROTOCOL,
            agent_version=__version__,
            name=self._identity.name,
            machine=hardware.fingerprint(self._identity.folder),
            instance=self._instance,
            host=hardware.host(self._settings.state_dir),
            gpus=self._gpus.describe(),
            models=models,
            labels=dict(self._settings.labels),
            token=token,
            node=node,
            secret=secret,
        )

    def _accept(self, registered: Registered) -> Registered:
        if registered.secret:
            self._identity.keep(registered.node, registered.secret)
        credential = self._identity.credential
        if credential is None or credential.node != registered.node:
            raise AgentError(
                "the coordinator enrolled this node but gave no secret: is it of another version?"
            )
        self._coordinator.authenticate(credential.node, credential.secret)
        self._registered = registered
        log.event(
            _logger,
            logging.INFO,
            "registered",
            node=registered.node,
            name=self._identity.name,
            incarnation=registered.incarnation,
            state=registered.state,
            gpus=len(self._gpus),
        )
        if registered.state == "pending":
            log.event(_logger, logging.INFO, "waiting for an admin to approve this node")
        return registered
