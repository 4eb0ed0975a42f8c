"""The engines of this node: sole owner of their processes. `plan` decides, `Engines.run` does it.

An engine is ready when its /health answers 200 *and* it has really generated a token. When its process ends,
the model stops being ready first, then everything else happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from worker_agent import hints, log, plan
from worker_agent.contract import ModelReport, ModelState
from worker_agent.engine_client import EngineClient, EngineError
from worker_agent.launch import ModelChoice, engine_command, engine_environment
from worker_agent.loading import LoadFailed, until_serving
from worker_agent.meter import EngineLoad, Meter, parse_metrics
from worker_agent.plan import Phase, Standing
from worker_agent.process import EngineProcess, clean_leftovers
from worker_agent.settings import Settings

_logger = logging.getLogger(__name__)

_STATES = {
    Phase.DOWN: ModelState.LOADING,  # it is about to be: it waits for its turn, or out a pause
    Phase.LOADING: ModelState.LOADING,
    Phase.UP: ModelState.READY,
    Phase.STOPPING: ModelState.UNLOADING,
    Phase.FAILED: ModelState.FAILED,
}
_TELL_SECONDS = 5.0


class Engine:
    """One model and, while it runs, its engine."""

    def __init__(self, choice: ModelChoice, slots: int) -> None:
        self.choice, self.slots = choice, slots
        self.phase = Phase.DOWN
        self.failures: tuple[float, ...] = ()
        self.proven = False
        self.reason = ""
        self.progress = 0.0
        self.max_model_len = 0
        self.version = ""
        self.client: EngineClient | None = None
        self.process: EngineProcess | None = None
        self.meter = Meter(time.monotonic)
        self._figures = (0.0, 0.0)
        self._load = EngineLoad()

    @property
    def standing(self) -> Standing:
        """What `plan` needs to know."""
        return Standing(self.phase, wanted=True, failures=self.failures, proven=self.proven)

    def report(self) -> ModelReport:
        """What the coordinator is told."""
        up = self.phase is Phase.UP
        rate, first_ms = self._figures if up else (0.0, 0.0)
        load = self._load if up else EngineLoad()
        return ModelReport(
            name=self.choice.name,
            state=_STATES[self.phase],
            slots=self.slots,
            max_model_len=self.max_model_len,
            progress=self.progress if not up else 1.0,
            reason="" if up else self.reason[:2000],
            engine=self.version[:200],
            running=load.running,
            waiting=load.waiting,
            kv_cache_usage=load.kv_cache_usage,
            tokens_per_s=rate,
            ttft_ms=first_ms,
        )

    async def measure(self) -> None:
        """Read the figures for the next `report`: our counts since the last time, the engine's batch now."""
        self._figures = self.meter.read()
        if self.client is None or self.phase is not Phase.UP:
            return
        try:
            status, body = await self.client.get("/metrics", timeout=2.0)
        except EngineError:
            return  # the figures stay those of the last beat; its death is noticed elsewhere
        if status == 200:
            self._load = parse_metrics(body.decode("utf-8", "replace"))


class Engines:
    """All models of this node. `on_change` is called after each change of a model's state."""

    def __init__(
        self, settings: Settings, folder: Path, *, has_gpu: bool, on_change: Callable[[], None]
    ) -> None:
        self._settings, self._folder, self._has_gpu = settings, folder, has_gpu
        self._on_change = on_change
        self._engines = {choice.name: Engine(choice, settings.slots) for choice in settings.models}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._limits = plan.Limits()
        self._closed = False

    def ready(self, model: str) -> Engine | None:
        """The engine that serves `model` now."""
        engine = self._engines.get(model)
        return engine if engine is not None and engine.phase is Phase.UP else None

    def reports(self) -> list[ModelReport]:
        """Every model's report, in the order they were given."""
        return [engine.report() for engine in self._engines.values()]

    async def measure(self) -> None:
        """Read all figures for `reports`."""
        await asyncio.gather(*(engine.measure() for engine in self._engines.values()))

    @property
    def hopeless(self) -> str:
        """Why no model will ever be ready; empty while one may be."""
        engines = self._engines.values()
        if any(engine.phase is not Phase.FAILED for engine in engines):
            return ""
        return "; ".join(f"{engine.choice.name}: {engine.reason}" for engine in engines)

    async def run(self) -> None:
        """Bring up every model and keep it up; returns once none can be (`hopeless`) or `stop` was called."""
        clean_leftovers(self._folder / "engines")
        while not self._closed and not self.hopeless:
            self._news.clear()
            for life in self._lives.values():
                if life.done() and not life.cancelled():
                    life.result()  # a mistake of ours, not a failure of the engine: do not limp on
            now = time.monotonic()
            step = plan.next_step({n: e.standing for n, e in self._engines.items()}, now, self._limits)
            match step:
                case plan.Start(model):
                    self._start(self._engines[model])
                case plan.Stop(model):
                    self._turn(self._engines[model], Phase.STOPPING, "")
                    self._lives[model].cancel()
                case plan.GiveUp(model, why):
                    engine = self._engines[model]
                    self._turn(engine, Phase.FAILED, f"{why}: {engine.reason}")
                    log.event(_logger, logging.ERROR, "gave a model up", model=model, why=engine.reason)
                case plan.Wait(seconds):
                    try:
                        async with asyncio.timeout(seconds):
                            await self._news.wait()
                    except TimeoutError:
                        pass  # a pause is over

    async def stop(self) -> None:
        """End every engine and wait until nothing of them is left."""
        self._closed = True
        self._news.set()
        lives = [life for life in self._lives.values() if not life.done()]
        for life in lives:
            if life.cancelling() == 0:
                life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    def kill(self) -> None:
        """Spare no engine its grace, now or in a `stop` under way."""
        self._closed = True
        for engine in self._engines.values():
            if engine.process is not None:
                engine.process.kill()

    # -- one engine's life -----------------------------------------------------------------------------
    def _start(self, engine: Engine) -> None:
        self._turn(engine, Phase.LOADING, "")
        name = engine.choice.name
        life = asyncio.create_task(self._live(engine), name=f"engine {name}")
        self._lives[name] = life
        # Only a mistake of ours ends a life with an exception; `run` must hear of it.
        life.add_done_callback(lambda _: self._news.set())

    def _turn(self, engine: Engine, phase: Phase, reason: str) -> None:
        engine.phase, engine.reason = phase, reason
        self._news.set()
        self._on_change()

    async def _live(self, engine: Engine) -> None:
        """From start to end of one process. Afterwards the model is DOWN, with the failure noted."""
        name, started = engine.choice.name, time.monotonic()
        reason = "stopped"
        try:
            process = engine.process = await self._spawn(engine)
            await self._load(engine, process, started)
            status = await process.wait()
            reason = f"the engine ended with {_ended(status)}: {hints.reason(process.output())}"
        except (LoadFailed, OSError) as error:
            reason = str(error)
        finally:
            # First withdraw the model, then end the process: the other order would serve a dying engine.
            self._withdraw(engine, reason)
            if engine.process is not None:
                await engine.process.stop()
                engine.process = None
        engine.failures = (*engine.failures[-9:], time.monotonic())
        again = engine.proven and len(engine.failures) < self._limits.failures
        level = logging.WARNING if again else logging.ERROR
        log.event(_logger, level, "engine failed", model=name, why=reason)
        self._turn(engine, Phase.DOWN, reason)

    def _withdraw(self, engine: Engine, reason: str) -> None:
        if engine.phase is not Phase.STOPPING:
            self._turn(engine, Phase.STOPPING, reason)
        engine.max_model_len, engine.progress = 0, 0.0
        if engine.client is not None:
            engine.client.close()
            engine.client = None

    async def _spawn(self, engine: Engine) -> EngineProcess:
        settings, choice = self._settings, engine.choice
        port = _free_port()
        engine.client = EngineClient(port)
        command = engine_command(
            settings.engine_python,
            choice,
            port=port,
            slots=settings.slots,
            max_model_len=settings.max_model_len,
            extra=settings.engine_args,
        )
        file_name = re.sub(r"[^A-Za-z0-9._-]", "_", choice.name)
        log_path = self._folder / "logs" / f"{file_name}.log"
        log.event(_logger, logging.INFO, "starting engine", model=choice.name, port=port, log=log_path)
        return await EngineProcess.start(
            command,
            engine_environment(os.environ, choice, has_gpu=self._has_gpu),
            record=self._folder / "engines" / f"{file_name}.json",
            log_path=log_path,
        )

    async def _load(self, engine: Engine, process: EngineProcess, started: float) -> None:
        """Wait until it serves; tell how far it is. Raises `LoadFailed`."""
        client = engine.client
        assert client is not None
        ended = asyncio.create_task(process.wait())
        serving = asyncio.create_task(until_serving(client, engine.choice.name))
        limit = started + self._settings.load_seconds
        try:
            while not serving.done():
                now = time.monotonic()
                if ended.done():
                    why = hints.reason(process.output())
                    raise LoadFailed(f"{why} (the engine ended with {_ended(ended.result())})")
                if now >= limit:
                    seconds = self._settings.load_seconds
                    raise LoadFailed(f"not ready within {seconds:g} s: allow more with --load-seconds")
                pause = min(_TELL_SECONDS, limit - now)
                await asyncio.wait({ended, serving}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done() and not ended.done():
                    self._tell(engine, process, time.monotonic() - started)
            engine.version, engine.max_model_len = serving.result()
        finally:
            for task in (ended, serving):
                task.cancel()
            await asyncio.gather(ended, serving, return_exceptions=True)
        seconds = round(time.monotonic() - started, 1)
        engine.proven = True
        engine.meter.read()  # what came before was warming up
        self._turn(engine, Phase.UP, "")
        log.event(
            *(_logger, logging.INFO, "model ready"),
            model=engine.choice.name, seconds=seconds, engine=engine.version, context=engine.max_model_len,
        )  # fmt: skip

    def _tell(self, engine: Engine, process: EngineProcess, seconds: float) -> None:
        lines = process.output()
        engine.progress = hints.progress(lines)
        said = hints.hint(lines)
        engine.reason = f"loading for {seconds:.0f} s: {said}"
        log.event(
            *(_logger, logging.INFO, "loading model"),
            model=engine.choice.name, seconds=round(seconds), engine_says=said,
        )  # fmt: skip


def _ended(status: int) -> str:
    return f"signal {status - 128}" if status > 128 else f"exit status {status}"


def _free_port() -> int:
    """A port below the range that outgoing connections take theirs from, free at this moment."""
    for _ in range(200):
        port = random.randint(18_000, 30_000)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LoadFailed("no free port between 18000 and 30000")
