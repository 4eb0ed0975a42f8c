"""What is known of one model on this node, and what of it the coordinator is told."""

from __future__ import annotations

import time

from worker_agent import memory
from worker_agent.contract import ModelReport, ModelState
from worker_agent.gauge import Gauge
from worker_agent.launch import ModelChoice
from worker_agent.meter import EngineLoad, Pace
from worker_agent.plan import Phase, Standing, Wish
from worker_agent.remembered import Remembered, key_of
from worker_agent.serving import Pulse
from worker_agent.settings import Settings

_STATES = {
    Phase.DOWN: ModelState.LOADING,  # it is about to be: it waits for its turn, for room, or out a pause
    Phase.LOADING: ModelState.LOADING,
    Phase.UP: ModelState.READY,
    Phase.LEAVING: ModelState.UNLOADING,
    Phase.ASLEEP: ModelState.SLEEPING,
    Phase.FAILED: ModelState.FAILED,
}


class EngineState:
    """`Engine` changes it, `Engines` writes the wishes, `plan` reads it as a `Standing`."""

    def __init__(self, choice: ModelChoice, settings: Settings, gauge: Gauge, remembered: Remembered) -> None:
        self.choice, self.slots = choice, settings.slots
        self._gauge, self._remembered = gauge, remembered
        self.phase, self.wish, self.asked_at = Phase.DOWN, Wish.NONE, 0.0
        self.pinned = self.leave = self.proven = self.out_of_memory = self.can_sleep = False
        self.failures: tuple[float, ...] = ()
        self.given_up, self.failed_until, self.up_since = 0, 0.0, 0.0
        self.reason, self.progress, self.version, self.max_model_len = "", 0.0, "", 0
        self.estimate = self.asleep_need = 0
        self.pulse = Pulse()
        self._downloading = False
        self._figures = (0.0, 0.0)
        self._load, self._pace = EngineLoad(), Pace()
        arguments = [*settings.engine_args, str(settings.max_model_len), str(settings.slots)]
        self._key = key_of(choice.name, choice.source, arguments)
        self._told_need = dict(settings.needs).get(choice.name, 0)

    @property
    def need(self) -> int:
        """Bytes it takes when loaded: as told, else as measured, else as estimated."""
        # What has been loaded here does fit, however much it took.
        measured = min(self._remembered.about(self._key).need, self._gauge.budget)
        return self._told_need or measured or self.estimate

    @property
    def never_fits(self) -> str:
        """Why it can never be loaded on this node; empty if it can."""
        return memory.never_fits(self.need, self._gauge.budget)

    @property
    def standing(self) -> Standing:
        """What `plan` needs to know."""
        return Standing(
            self.phase,
            wish=self.wish,
            asked_at=self.asked_at,
            need=self.need,
            asleep_need=self.asleep_need,
            in_flight=self.pulse.in_flight,
            last_used=self.pulse.last_used,
            up_since=self.up_since,
            pinned=self.pinned,
            can_sleep=self.can_sleep,
            leave=self.leave,
            failures=self.failures,
            proven=self.proven,
            out_of_memory=self.out_of_memory,
            given_up=self.given_up,
            failed_until=self.failed_until,
        )

    @property
    def is_ready(self) -> bool:
        """Whether it takes work."""
        return self.phase is Phase.UP and not self.leave

    @property
    def state(self) -> ModelState:
        """As the coordinator is told."""
        if self.phase is Phase.UP and self.leave:
            return ModelState.UNLOADING
        if self.phase is Phase.LOADING and self._downloading:
            return ModelState.DOWNLOADING
        if self.phase is Phase.DOWN and self.wish is Wish.NONE:
            return ModelState.OFFERED
        if self.phase is Phase.ASLEEP and self.wish is not Wish.NONE:
            return ModelState.LOADING
        return _STATES[self.phase]

    def report(self) -> ModelReport:
        """What the coordinator is told."""
        up, now = self.phase is Phase.UP, time.monotonic()
        rate, first_ms = self._figures if up else (0.0, 0.0)
        load = self._load if up else EngineLoad()
        lesson = self._remembered.about(self._key)
        return ModelReport(
            name=self.choice.name,
            state=self.state,
            slots=self.slots,
            max_model_len=self.max_model_len,
            progress=1.0 if up else self.progress,
            reason="" if up else (self.never_fits or self.reason)[:2000],
            engine=self.version[:200],
            running=load.running,
            waiting=load.waiting,
            kv_cache_usage=load.kv_cache_usage,
            tokens_per_s=rate,
            ttft_ms=first_ms,
            stream_tokens_per_s=self._pace.tokens_per_s,
            vram_used=self.standing.held,
            need=self.need,
            need_measured=bool(lesson.need) and not self._told_need,
            fits=not self.never_fits,
            pinned=self.pinned,
            idle_seconds=0.0 if self.pulse.in_flight else now - self.pulse.last_used,
            retry_seconds=max(0.0, self.failed_until - now) if self.phase is Phase.FAILED else 0.0,
            load_seconds=lesson.load_seconds,
        )
