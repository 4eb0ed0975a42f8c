"""One model and, while it runs, its engine: the sole owner of that process.

An engine is ready when its /health answers 200 *and* it has really generated a token. When it ends, hangs or
is told to go, the model stops being ready first, then everything else happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from worker_agent import hardware, hints, log, memory, weights
from worker_agent.beside import beside, first_of
from worker_agent.contract import Work
from worker_agent.engine_client import EngineClient
from worker_agent.engine_state import EngineState
from worker_agent.gauge import Gauge
from worker_agent.launch import ModelChoice, engine_command, engine_environment, free_port
from worker_agent.loading import LoadFailed, is_alive, load_of, until_serving
from worker_agent.meter import EngineLoad
from worker_agent.plan import Phase, Wish
from worker_agent.process import EngineProcess
from worker_agent.remembered import Lesson, Remembered
from worker_agent.settings import Settings
from worker_agent.sleeping import can_sleep, fall_asleep, wake_up
from worker_agent.supervision import Patience, until_hung

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_LOOK_SECONDS = 1.0
_TELL_SECONDS = 10.0


class Order(Enum):
    """What a running engine may be told."""

    SLEEP = "sleep"
    WAKE = "wake"


class EngineFailed(Exception):
    """The engine ended by itself, or had to be ended. `told` says it without the engine's own words."""

    def __init__(self, reason: str, told: str = "") -> None:
        super().__init__(reason)
        self.told = told or reason


class Engine(EngineState):
    """`on_change` is called after each change of state, `on_lost(model, why)` before its work is cut off."""

    def __init__(
        self,
        choice: ModelChoice,
        settings: Settings,
        folder: Path,
        gauge: Gauge,
        remembered: Remembered,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        super().__init__(choice, settings, gauge, remembered)
        self._settings, self._folder = settings, folder
        self._on_change, self._on_lost = on_change, on_lost
        self.client: EngineClient | None = None
        self.process: EngineProcess | None = None
        self.life: asyncio.Task[None] | None = None
        self.ending = False  # its process is being ended: not to be disturbed
        self._level = 1
        self._orders: asyncio.Queue[Order] = asyncio.Queue()

    def translation(self, work: Work) -> None:
        """None: everything passes byte for byte."""

    # -- figures -------------------------------------------------------------------------------------
    async def measure(self) -> None:
        """Read the figures for the next `report`: our counts since the last time, the engine's batch now."""
        self._figures = self.pulse.meter.read()
        if self.phase is Phase.UP and (load := await self._look()) is not None:
            self._load = load  # else the figures stay those of the last beat; its death is noticed elsewhere
            self._pace.see(load)

    async def _look(self) -> EngineLoad | None:
        return None if self.client is None else await load_of(self.client)

    # -- what it is told -------------------------------------------------------------------------------
    def start(self) -> asyncio.Task[None]:
        """Begin a life; the phase tells how it goes, the task ends when nothing of it is left."""
        self._orders = asyncio.Queue()
        self.turn(Phase.LOADING, "")
        self.life = asyncio.create_task(self._live(), name=f"engine {self.choice.name}")
        return self.life

    def order(self, order: Order) -> None:
        """Fall asleep or wake up."""
        self.turn(Phase.LEAVING if order is Order.SLEEP else Phase.LOADING, "")
        self._orders.put_nowait(order)

    def stop(self) -> None:
        """End its life."""
        self.turn(Phase.LEAVING, "")
        if self.life is not None:
            self.life.cancel()

    def turn(self, phase: Phase, reason: str) -> None:
        """Change the phase."""
        self.phase, self.reason, self.progress = phase, reason, 0.0
        self._on_change()

    # -- its life --------------------------------------------------------------------------------------
    async def _live(self) -> None:
        """From start to end of one process. Afterwards the model is DOWN, with the failure noted if any."""
        name, failure = self.choice.name, ""
        self._downloading = self.out_of_memory = False
        try:
            process = self.process = await self._spawn()
            await self._come_up(process)
            while True:
                await self._while_alive(process, self._serve())
                await self._while_alive(process, self._fall_asleep(process))
                await self._while_alive(process, self._orders.get())
                await self._while_alive(process, self._wake_up())
        except (LoadFailed, EngineFailed, OSError) as error:
            failure = str(error)
            self._on_lost(name, error.told if isinstance(error, EngineFailed) else "the engine did not load")
        finally:
            # First withdraw the model, then end the process: the other order would serve a dying engine.
            self._withdraw(failure)
            await self._end()
            if failure:
                self.failures = (*self.failures[-9:], time.monotonic())
                log.event(_logger, logging.WARNING, "engine failed", model=name, why=failure)
                if self.proven and self.wish is Wish.START:
                    self.wish = Wish.LOAD  # it had its place
            self.leave = False
            self.turn(Phase.DOWN, failure)

    def _withdraw(self, reason: str) -> None:
        if self.phase is not Phase.LEAVING:
            self.turn(Phase.LEAVING, reason)
        self.max_model_len = 0
        if self.client is not None:
            self.client.close()
            self.client = None

    async def _end(self) -> None:
        """Nothing of the process is left afterwards, and its memory has been seen to return."""
        process, name = self.process, self.choice.name
        if process is None:
            return
        self.ending = True
        free, used = self._gauge.free(), await self._gauge.used(process.pid)
        await process.stop()
        self.process, self.ending = None, False
        seconds = await self._gauge.returned(free, used)
        if seconds is None:
            log.event(
                _logger, logging.WARNING, "memory has not come back", model=name, size=memory.human(used)
            )
        else:
            size = memory.human(used) if used else None
            log.event(_logger, logging.INFO, "engine is gone, its memory is back", model=name, size=size)

    async def _while_alive(self, process: EngineProcess, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`. Raises `EngineFailed` if the engine ends first."""
        async with beside(process.wait(), work) as tasks:
            await first_of(tasks)
            ended, task = tasks
            if task.done():
                result: _T = task.result()
                return result
            told = f"the engine ended with {_ended(ended.result())}"
            error = hints.last_error(process.output())
            raise EngineFailed(f"{told}: {error}" if error else told, told)

    async def _spawn(self) -> EngineProcess:
        settings, choice, gauge = self._settings, self.choice, self._gauge
        port = free_port()
        self.client = EngineClient(port)
        # The share comes from what is told or estimated, never from what was measured: an engine that takes
        # a little more than its share would be given a little more each time.
        share = min(1.0, (self._told_need or self.estimate) / gauge.total) if gauge.has_gpu else None
        sleep_mode = settings.sleep_mode and gauge.has_gpu
        command = engine_command(
            settings.engine_python,
            choice,
            port=port,
            slots=settings.slots,
            max_model_len=settings.max_model_len,
            extra=settings.engine_args,
            single_precision=not gauge.has_gpu and hardware.half_precision_is_slow(),
            gpu_share=share,
            sleep_mode=sleep_mode,
        )
        file_name = re.sub(r"[^A-Za-z0-9._-]", "_", choice.name)
        log_path = self._folder / "logs" / f"{file_name}.log"
        log.event(_logger, logging.INFO, "starting engine", model=choice.name, port=port, log=log_path)
        return await EngineProcess.start(
            command,
            engine_environment(os.environ, choice, has_gpu=gauge.has_gpu, sleep_mode=sleep_mode),
            record=self._folder / "engines" / f"{file_name}.json",
            log_path=log_path,
        )

    async def _come_up(self, process: EngineProcess) -> None:
        """Wait until it serves; tell how far it is. Raises `LoadFailed`."""
        client, name, started = self.client, self.choice.name, time.monotonic()
        assert client is not None
        limit, tell_at, step = started + self._settings.load_seconds, 0.0, ""
        async with beside(process.wait(), until_serving(client, name)) as tasks:
            ended, serving = tasks
            while not serving.done():
                now = time.monotonic()
                if ended.done():
                    raise LoadFailed(self._why_not_up(process, ended.result()))
                if now >= limit:
                    seconds = self._settings.load_seconds
                    raise LoadFailed(f"not ready within {seconds:g} s: allow more with --load-seconds")
                if (said := self._watch_load(process, now - started)) != step or now >= tell_at:
                    tell_at, step = now + _TELL_SECONDS, said
                    seconds = round(now - started)
                    log.event(_logger, logging.INFO, "loading model", model=name, seconds=seconds, step=step)
                await first_of(tasks, min(_LOOK_SECONDS, limit - now))
            self.version, self.max_model_len = serving.result()
        self.can_sleep = self._settings.sleep_mode and await can_sleep(client)
        await self._learn(process, round(time.monotonic() - started, 1))
        self._up()

    def _why_not_up(self, process: EngineProcess, status: int) -> str:
        lines = process.output()
        self.out_of_memory = hints.out_of_memory(lines)
        if status == 128 + 9:
            self.out_of_memory = True
            return "it was killed while it loaded, as the kernel does when memory runs out"
        return f"{hints.reason(lines)} (the engine ended with {_ended(status)})"

    def _watch_load(self, process: EngineProcess, seconds: float) -> str:
        """Which step of its load it is at; also noted for the next report."""
        lines = process.output()
        step = hints.hint(lines)
        usual = self._remembered.about(self._key).load_seconds
        by_time = min(0.95, seconds / usual) if usual else 0.0
        download = weights.downloading(self.choice, os.environ)
        downloading = download is not None or step.startswith("downloading")
        self.progress = (download.share if download else 0.0) or hints.progress(lines)
        if not downloading:
            self.progress = by_time or self.progress
        self.reason = f"loading for {seconds:.0f} s: {'downloading' if downloading else step}"
        if downloading != self._downloading:
            self._downloading = downloading
            self._on_change()
        return step

    async def _learn(self, process: EngineProcess, load_seconds: float) -> None:
        """Remember what this load took, for the next time."""
        used, name = await self._gauge.used(process.pid), self.choice.name
        self._remembered.learn(self._key, Lesson(used, load_seconds))
        log.event(
            _logger,
            logging.INFO,
            "model ready",
            model=name,
            seconds=load_seconds,
            engine=self.version,
            context=self.max_model_len,
            memory=memory.human(used) if used else None,
        )

    def _up(self) -> None:
        self.proven, self.given_up, self.up_since = True, 0, time.monotonic()
        self.pulse.last_used = self.up_since
        self.pulse.meter.read()  # what came before was warming up
        self.turn(Phase.UP, "")

    # -- up, asleep, up again --------------------------------------------------------------------------
    async def _serve(self) -> Order:
        """Until it is told to sleep. Raises `EngineFailed` when it hangs."""
        client, name = self.client, self.choice.name
        assert client is not None
        patience = Patience(self._settings.canary_seconds, self._settings.abort_seconds)
        watching = until_hung(
            self.pulse, patience, look=self._look, canary=lambda seconds: is_alive(client, name, seconds)
        )
        async with beside(watching, self._orders.get()) as tasks:
            await first_of(tasks)
            hung, order = tasks
            if order.done():
                told: Order = order.result()
                return told
            reason = f"the engine hung: {hung.result()}"
        log.event(_logger, logging.ERROR, "engine hangs, killing it", model=name, why=reason)
        if self.process is not None:
            self.process.kill()
        raise EngineFailed(reason)

    async def _fall_asleep(self, process: EngineProcess) -> None:
        """Raises `LoadFailed` if it does not."""
        assert self.client is not None
        size = weights.on_disk(self.choice, os.environ)
        level = memory.sleep_level(hardware.ram_free(), size)
        await fall_asleep(self.client, level)
        used = await self._gauge.used(process.pid)
        # Where the driver does not tell: what an engine takes beside weights and cache stays with it.
        kept = min(self.need, used or (memory.GPU_OVERHEAD if self._gauge.has_gpu else 0))
        log.event(
            _logger,
            logging.INFO,
            "model sleeps",
            model=self.choice.name,
            sleep_level=level,
            keeps=memory.human(kept),
        )
        self._level, self.asleep_need = level, kept
        self.turn(Phase.ASLEEP, "")

    async def _wake_up(self) -> None:
        """Raises `LoadFailed`."""
        assert self.client is not None
        started, name = time.monotonic(), self.choice.name
        await wake_up(self.client, name, self._level, self._settings.load_seconds)
        log.event(
            _logger, logging.INFO, "model awake", model=name, seconds=round(time.monotonic() - started, 1)
        )
        self._up()


def _ended(status: int) -> str:
    return f"signal {status - 128}" if status > 128 else f"exit status {status}"
