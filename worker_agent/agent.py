"""The agent: wires its parts together and owns the stopping of them.

If one of the side tasks dies, the agent stops rather than limps; its engines are ended in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from worker_agent import hardware, log, preflight, quiet
from worker_agent.attempts import Attempts
from worker_agent.beside import beside, first_of
from worker_agent.contract import (
    BeatReply,
    Cancel,
    Control,
    Drain,
    Heartbeat,
    Load,
    Outcome,
    Pin,
    Registered,
    Resume,
    Unload,
)
from worker_agent.coordinator import Coordinator
from worker_agent.engines import Engines
from worker_agent.errors import AgentError
from worker_agent.gauge import Gauge
from worker_agent.identity import Identity, take
from worker_agent.launch import gpus_used
from worker_agent.mailbox import Mailbox
from worker_agent.reports import Reports
from worker_agent.session import Session
from worker_agent.settings import Settings

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

FLUSH_SECONDS = 5.0
_CLOCK_SECONDS = 20.0


class _Stopped(Exception):
    """All is done that an orderly stop does; ends the task group."""


class Agent:
    """Built inside a running loop; `run` once."""

    def __init__(self, settings: Settings, identity: Identity, gpus: hardware.Gpus) -> None:
        self.settings = settings
        self._gpus = gpus
        self._told_to_stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._drains: dict[str, str] = {}  # who wants no new work here -> the reason told
        self._reason = "stopped"
        self._gauge = Gauge(gpus, gpus_used(settings.engine_args), settings.vram_reserve)
        self.coordinator = Coordinator(settings.coordinator)
        self.session = Session(settings, identity, gpus, self.coordinator)
        self.engines = Engines(
            settings,
            identity.folder,
            self._gauge,
            on_change=self.session.beat_now,
            on_lost=lambda model, why: self.attempts.lose(model, why),
        )
        self.reports = Reports(
            self.coordinator,
            lambda: self.session.incarnation,
            lambda job, attempt: self.attempts.cancel(job, attempt),
        )
        self.attempts = Attempts(
            ready=self.engines.ready,
            send=lambda web, reply: self.mailbox.send(web, reply),
            report=self.reports.put,
            on_idle=self._idle,
        )
        self.mailbox = Mailbox(
            on_work=self.attempts.take,
            on_control=self._control,
            on_nobody=self.attempts.abandon,
            on_denied=self.session.beat_now,
            on_connected=self.session.beat_now,
            redis_ca=settings.redis_ca,
        )

    async def run(self) -> None:
        """Serve until told to stop by a signal. Raises `AgentError` if it has to end for another reason."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            if await self._unless_stopped(self._register(self.settings.connect_seconds)):
                await self._serve()
        finally:
            await self._end()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _serve(self) -> None:
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_engines(), name="engines")
                tasks.create_task(self.mailbox.run(), name="mailbox")
                tasks.create_task(self._beat(), name="beats")
                tasks.create_task(self._keep_quiet_hours(), name="quiet hours")
                tasks.create_task(self._stop_when_told(), name="stop")
        except* _Stopped:
            pass
        except* AgentError as group:
            failed = _first(group)
        if failed is not None:  # raised in there it would come in a group again, by a Python before 3.11.4
            self._reason = str(failed)
            raise failed

    # -- parts -----------------------------------------------------------------------------------------
    async def _run_engines(self) -> None:
        await self.engines.run()
        if reason := self.engines.hopeless:
            await self.session.beat_once(await self._figures())  # so that the reason is seen there, too
            raise AgentError(f"no model can be served: {reason}")

    async def _beat(self) -> None:
        await self.session.beat_for_ever(self._figures, self._apply, self._register_again)

    async def _register(self, patience: float | None) -> bool:
        registered: Registered = await self.session.register(self.engines.reports(), patience)
        self.mailbox.identify(
            registered.node,
            registered.incarnation,
            registered.lease_refresh_seconds,
            registered.lease_seconds,
        )
        await self.mailbox.use(registered.redis)
        return True

    async def _register_again(self) -> None:
        await self._register(None)

    async def _figures(self) -> Heartbeat:
        await self.engines.measure()
        return Heartbeat(
            incarnation=self.session.incarnation,
            draining=self.attempts.draining,
            models=self.engines.reports(),
            gpus=await asyncio.to_thread(self._gpus.load),
            ram_free=hardware.ram_free(),
            disk_free=hardware.disk_free(self.settings.state_dir),
            cpu_usage=hardware.cpu_usage(),
            # A result that is not delivered is work we have: it must not be given to another.
            attempts=list({*self.attempts.keys(), *self.reports.keys()}),
            memory_budget=self._gauge.budget,
            memory_used=self.engines.memory_used,
            draining_reason=", ".join(self._drains.values()),
            redis_connected=self.mailbox.connected,
            redis_denied=self.mailbox.denied,
        )

    async def _apply(self, reply: BeatReply) -> None:
        self._drain("operator", "drained by the operator" if reply.draining else None)
        self.engines.pin_only(reply.pinned)
        if reply.redis is not None:
            await self.mailbox.use(reply.redis)

    def _control(self, message: Control) -> None:
        match message:
            case Cancel(job, attempt):
                self.attempts.cancel(job, attempt)
            case Drain():
                self._drain("operator", "drained by the operator")
            case Resume():
                self._drain("operator", None)
            case Load(model):
                self.engines.load(model)
            case Unload(model):
                self.engines.unload(model)
            case Pin(model, pinned):
                self.engines.pin(model, pinned)

    # -- draining --------------------------------------------------------------------------------------
    def _drain(self, who: str, reason: str | None) -> None:
        """`who` wants no new work here for this reason, or (None) does not mind any more."""
        if self._drains.get(who) == reason:
            return
        if reason is None:
            del self._drains[who]
        else:
            self._drains[who] = reason
        self.attempts.draining = bool(self._drains)
        words = "draining: no new work" if self._drains else "taking work again"
        why = ", ".join(self._drains.values()) or None
        log.event(_logger, logging.INFO, words, why=why, running=len(self.attempts))
        self.session.beat_now()
        if self._drains and not self.attempts:
            self._drained()

    def _idle(self) -> None:
        """A model has no work left."""
        self.engines.work_ended()
        if self._drains and not self.attempts:
            self._drained()

    def _drained(self) -> None:
        log.event(_logger, logging.INFO, "drained: nothing runs")
        self.session.beat_now()

    async def _keep_quiet_hours(self) -> None:
        """While the owner keeps the machine: no new work, what runs may end, all memory is given back."""
        spans = self.settings.quiet_hours
        while spans:
            # The clock of the wall, looked at often: it may be set, or the host may have slept.
            now = datetime.datetime.now()
            end = quiet.until(spans, now)
            self._drain("quiet hours", f"quiet hours until {end:%H:%M}" if end else None)
            self.engines.rest(end is not None)
            change = quiet.next_change(spans, now)
            seconds = (change - now).total_seconds() if change else _CLOCK_SECONDS
            await asyncio.sleep(min(max(0.1, seconds), _CLOCK_SECONDS))

    # -- stopping --------------------------------------------------------------------------------------
    def _signalled(self) -> None:
        if self._told_to_stop.is_set():
            log.event(_logger, logging.WARNING, "second signal: stopping at once")
            self._hurry.set()
            self.engines.kill()
        self._told_to_stop.set()

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """The result, or None if a signal came first."""
        async with beside(work, self._told_to_stop.wait()) as tasks:
            await first_of(tasks)
            return tasks[0].result() if tasks[0].done() else None

    async def _stop_when_told(self) -> None:
        await self._told_to_stop.wait()
        self._drain("stopping", "stopping")
        running, grace = len(self.attempts), self.settings.grace_seconds
        log.event(_logger, logging.INFO, "stopping", running=running, grace_seconds=grace)
        await self._or_hurry(self.attempts.idle(), grace)
        self.attempts.abort_all(Outcome.DRAINING, "the node is stopping")
        await self._or_hurry(self.attempts.idle(), FLUSH_SECONDS)
        await self._or_hurry(self.mailbox.flush(FLUSH_SECONDS), FLUSH_SECONDS)
        await self._or_hurry(self.reports.flush(FLUSH_SECONDS), FLUSH_SECONDS)
        raise _Stopped

    async def _or_hurry(self, work: Coroutine[Any, Any, object], seconds: float) -> None:
        """Wait for `work`, but not longer than `seconds`, and not at all once told twice to stop."""
        async with beside(work, self._hurry.wait()) as tasks:
            await first_of(tasks, seconds)

    async def _end(self) -> None:
        """However it came: nothing is left running."""
        await self.attempts.close()
        await self.reports.close()
        await self.session.goodbye(self._reason)
        await self.engines.stop()
        await self.mailbox.close()
        await self.coordinator.close()
        log.event(_logger, logging.INFO, "stopped")


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(settings: Settings) -> None:
    """Check, take an identity, serve. Raises `AgentError`."""
    version = await asyncio.to_thread(preflight.check, settings)
    identity = take(settings.state_dir, settings.coordinator, settings.name)
    gpus = hardware.Gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(gpus) == 0:
        log.event(_logger, logging.INFO, "no NVIDIA GPU found: joining as a CPU node")
    elif len(gpus) > (used := gpus_used(settings.engine_args)):
        words = "not all GPUs are used by this agent"
        remedy = "--engine-args '--tensor-parallel-size N', or an agent for each by CUDA_VISIBLE_DEVICES"
        log.event(_logger, logging.WARNING, words, gpus=len(gpus), used=used, remedy=remedy)
    if version is not None:
        log.event(_logger, logging.INFO, "engine found", python=settings.engine_python, vllm=version or None)
    with contextlib.ExitStack() as held:
        held.callback(identity.release)
        held.callback(gpus.close)
        await Agent(settings, identity, gpus).run()
