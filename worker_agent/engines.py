"""All models of this node. `plan` decides which are loaded, `Engines.run` does it and logs why."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from worker_agent import log, memory, plan, weights
from worker_agent.contract import ModelReport
from worker_agent.engine import Engine, Order
from worker_agent.gauge import Gauge
from worker_agent.launch import kv_cache_gib
from worker_agent.plan import Phase, Wish
from worker_agent.process import clean_leftovers
from worker_agent.remembered import Remembered
from worker_agent.remote import Remote
from worker_agent.serving import Server
from worker_agent.settings import Settings

_logger = logging.getLogger(__name__)


class Engines:
    """`on_change` is called after each change of a model's state, `on_lost(model, why)` when an engine is
    lost, before its work is cut off."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        gauge: Gauge,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        self._settings, self._folder, self._gauge = settings, folder, gauge
        self._on_change = on_change
        self._news = asyncio.Event()
        self._waits_for_work = False
        self._limits = plan.Limits(residence=settings.min_residence_seconds)
        remembered = Remembered(folder / "needs.json")
        self._engines = {
            choice.name: Engine(
                choice, settings, folder, gauge, remembered, on_change=self._changed, on_lost=on_lost
            )
            for choice in (*settings.models, *settings.offers)
        }
        self._remotes = {
            choice.name: Remote(choice, settings, on_change=on_change, on_lost=on_lost)
            for choice in settings.remotes
        }
        self._resting = self._closed = False
        self._said: dict[str, str] = {}
        self._estimate()
        self._wish_for_start_list()

    def _estimate(self) -> None:
        sizes = {name: weights.on_disk(it.choice, os.environ) for name, it in self._engines.items()}
        cache = int(kv_cache_gib(os.environ) * memory.GIB)
        on_gpu = memory.gpu_needs(sizes, self._gauge.budget)
        for name, engine in self._engines.items():
            engine.estimate = on_gpu[name] if self._gauge.has_gpu else memory.cpu_need(sizes[name], cache)
            if why := engine.never_fits:
                words = "a model can never be loaded here"
                remedy = "a smaller --vram-reserve, or --need where it is wrong"
                log.event(_logger, logging.ERROR, words, model=name, why=why, remedy=remedy)

    def _wish_for_start_list(self) -> None:
        for choice in self._settings.models:
            engine = self._engines[choice.name]
            if engine.wish is Wish.NONE and engine.phase is not Phase.FAILED and not engine.never_fits:
                engine.wish, engine.asked_at = Wish.START, 0.0

    # -- what is known ---------------------------------------------------------------------------------
    def ready(self, model: str) -> Server | None:
        """What serves `model` now."""
        engine = self._engines.get(model) or self._remotes.get(model)
        return engine if engine is not None and engine.is_ready else None

    @property
    def _all(self) -> list[Engine | Remote]:
        return [*self._engines.values(), *self._remotes.values()]

    def reports(self) -> list[ModelReport]:
        """Every model's report, in the order they were given."""
        return [it.report() for it in self._all]

    async def measure(self) -> None:
        """Read all figures for `reports`."""
        await asyncio.gather(*(it.measure() for it in self._all))

    @property
    def memory_used(self) -> int:
        """Bytes of the budget that engines hold."""
        return sum(engine.standing.held for engine in self._engines.values())

    @property
    def hopeless(self) -> str:
        """Why no model will ever be ready, as things are set up; empty while one may be.

        Want of memory can pass, and so can what befalls an engine that has served. With models on offer the
        agent goes on: one that failed to load when it was asked for may be asked for again.
        """
        if self._remotes:
            return ""
        reasons = []
        for name, engine in self._engines.items():
            failed = engine.phase is Phase.FAILED and not (
                engine.proven or engine.out_of_memory or self._settings.offers
            )
            if not (failed or engine.never_fits):
                return ""
            reasons.append(f"{name}: {engine.never_fits or engine.reason}")
        return "; ".join(reasons)

    # -- what is asked for -----------------------------------------------------------------------------
    def load(self, model: str) -> None:
        """Load it as soon as there is room. Does nothing for what is loaded, cannot be, or just failed."""
        engine = self._engines.get(model)
        if engine is None:
            log.event(_logger, logging.WARNING, "asked to load what is not ours to load", model=model)
            return
        if engine.never_fits or engine.phase is Phase.FAILED:
            why = (
                engine.never_fits
                or f"it may be tried again in {engine.failed_until - time.monotonic():.0f} s"
            )
            log.event(_logger, logging.WARNING, "not loading a model", model=model, why=why)
            return
        engine.leave = False
        if engine.phase is Phase.UP or engine.wish is Wish.LOAD:
            self._changed()
            return
        log.event(_logger, logging.INFO, "asked to load", model=model, state=engine.state)
        engine.wish, engine.asked_at = Wish.LOAD, time.monotonic()
        self._changed()

    def unload(self, model: str) -> None:
        """No new work for it; once it has none, its memory is given back."""
        if (engine := self._engines.get(model)) is None:
            return
        log.event(_logger, logging.INFO, "asked to unload", model=model, running=engine.pulse.in_flight)
        engine.wish = Wish.NONE
        engine.leave = engine.phase in {Phase.UP, Phase.LOADING, Phase.LEAVING, Phase.ASLEEP}
        self._changed()

    def pin(self, model: str, pinned: bool) -> None:
        """Whether it may be unloaded to make room."""
        if (engine := self._engines.get(model)) is not None and engine.pinned != pinned:
            engine.pinned = pinned
            log.event(_logger, logging.INFO, "pinned" if pinned else "unpinned", model=model)
            self._changed()

    def pin_only(self, models: list[str]) -> None:
        """Pin these and no others."""
        for name in self._engines:
            self.pin(name, name in models)

    def rest(self, resting: bool) -> None:
        """Give all memory back and load nothing; or load the start list again."""
        if resting != self._resting:
            self._resting = resting
            if not resting:
                self._wish_for_start_list()
            self._changed()

    def work_ended(self) -> None:
        """Perhaps something can be unloaded now. Called after every lone request, so nothing is thought over
        unless the plan waits for that."""
        if self._waits_for_work:
            self._news.set()

    # -- doing it --------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Keep the right models loaded; returns once none can be (`hopeless`) or `stop` was called."""
        clean_leftovers(self._folder / "engines")
        watched = [asyncio.create_task(remote.run()) for remote in self._remotes.values()]
        for task in watched:
            task.add_done_callback(lambda _: self._news.set())
        try:
            while not self._closed and not self.hopeless:
                self._news.clear()
                for task in [*watched, *(it.life for it in self._engines.values() if it.life)]:
                    if task.done() and not task.cancelled():
                        task.result()  # a mistake of ours, not a failure of the engine: do not limp on
                now = time.monotonic()
                standings = {name: engine.standing for name, engine in self._engines.items()}
                step = plan.next_step(standings, self._gauge.budget, now, self._limits, resting=self._resting)
                await self._do(step)
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _do(self, step: plan.Step) -> None:
        if isinstance(step, plan.Wait):
            self._say_wait(step)
            self._waits_for_work = step.for_work
            try:
                async with asyncio.timeout(step.seconds):
                    await self._news.wait()
            except TimeoutError:
                pass  # a pause is over
            return
        engine = self._engines[step.model]
        level = logging.ERROR if isinstance(step, plan.GiveUp) else logging.INFO
        words = "give up" if isinstance(step, plan.GiveUp) else type(step).__name__.lower()
        why = step.why
        log.event(_logger, level, f"plan: {words}", model=step.model, why=why, after=engine.reason or None)
        self._said.pop(step.model, None)
        match step:
            case plan.Start():
                # Only a mistake of ours ends a life with an exception; `run` must hear of it.
                engine.start().add_done_callback(lambda _: self._news.set())
            case plan.Wake():
                engine.order(Order.WAKE)
            case plan.Sleep():
                engine.wish = Wish.NONE
                engine.order(Order.SLEEP)
            case plan.Stop():
                engine.wish = Wish.NONE
                engine.stop()
            case plan.Drop():
                engine.wish = Wish.NONE
                engine.turn(engine.phase, why)
            case plan.GiveUp():
                engine.wish, engine.given_up = Wish.NONE, engine.given_up + 1
                engine.failed_until = time.monotonic() + step.seconds
                engine.turn(Phase.FAILED, f"{why}: {engine.reason}")
            case plan.Forgive():
                engine.failures = ()
                engine.out_of_memory = False
                engine.turn(Phase.DOWN, engine.reason)

    def _say_wait(self, step: plan.Wait) -> None:
        if step.why and self._said.get(step.model) != step.why:
            self._said[step.model] = step.why
            log.event(_logger, logging.INFO, "plan: wait", model=step.model, why=step.why)
            self._engines[step.model].reason = f"it waits for room: {step.why}"
            self._on_change()

    def _changed(self) -> None:
        self._news.set()
        self._on_change()

    async def stop(self) -> None:
        """End every engine and wait until nothing of them is left."""
        self._closed = True
        self._news.set()
        living = [it for it in self._engines.values() if it.life is not None and not it.life.done()]
        for engine in living:
            if not engine.ending:  # else it is ending already, and must not be kept from it
                engine.stop()
        await asyncio.gather(*(it.life for it in living if it.life), return_exceptions=True)

    def kill(self) -> None:
        """Spare no engine its grace, now or in a `stop` under way."""
        self._closed = True
        for engine in self._engines.values():
            if engine.process is not None:
                engine.process.kill()
