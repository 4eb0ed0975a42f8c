"""A model of an OpenAI-compatible server that already runs here: watched, never started or stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from worker_agent import log
from worker_agent.backoff import Backoff
from worker_agent.beside import beside, first_of
from worker_agent.contract import ModelReport, ModelState, Work
from worker_agent.engine_client import EngineClient, EngineError
from worker_agent.loading import is_alive, load_of, one_token
from worker_agent.meter import EngineLoad, Pace
from worker_agent.options import RemoteChoice
from worker_agent.serving import Pulse
from worker_agent.settings import Settings
from worker_agent.supervision import Patience, until_hung
from worker_agent.translating import Renaming

_logger = logging.getLogger(__name__)

_CHECK_SECONDS = 10.0
_ANSWER_SECONDS = 5.0


class _Card(msgspec.Struct):
    id: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card] = []


class _Down(Exception):
    """It does not serve; the message says why."""


class Remote:
    """`run` keeps the state true; `on_change` and `on_lost` as for an `Engine`."""

    def __init__(
        self,
        choice: RemoteChoice,
        settings: Settings,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        self.choice, self.slots = choice, settings.slots
        self._settings, self._on_change, self._on_lost = settings, on_change, on_lost
        self._served = choice.served_name or choice.name
        self.client: EngineClient | None = EngineClient(
            choice.port, choice.host, prefix=choice.prefix, tls=choice.tls
        )
        self.pulse = Pulse()
        self.is_ready = False
        self.reason = "it has not been asked yet"
        self.max_model_len = 0
        self._next_check = 0.0
        self._check_every = min(_CHECK_SECONDS, settings.canary_seconds)
        self._figures = (0.0, 0.0)
        self._load, self._pace = EngineLoad(), Pace()
        self._known_down = False
        if choice.is_exposed:
            words = "prompts go over the network unencrypted"
            log.event(_logger, logging.WARNING, words, model=choice.name, to=choice.where)

    def translation(self, work: Work) -> Renaming:
        """Its names for the model and for answers are not ours."""
        return Renaming(self.choice.name, self._served, work.job, work.path)

    def report(self) -> ModelReport:
        """What the coordinator is told."""
        now, up = time.monotonic(), self.is_ready
        down = ModelState.FAILED if self._known_down else ModelState.LOADING
        return ModelReport(
            name=self.choice.name,
            state=ModelState.READY if up else down,
            slots=self.slots,
            max_model_len=self.max_model_len,
            progress=1.0 if up else 0.0,
            reason="" if up else self.reason[:2000],
            engine=f"at {self.choice.where}"[:200],
            running=self._load.running if up else 0,
            waiting=self._load.waiting if up else 0,
            kv_cache_usage=self._load.kv_cache_usage if up else 0.0,
            tokens_per_s=self._figures[0] if up else 0.0,
            ttft_ms=self._figures[1] if up else 0.0,
            stream_tokens_per_s=self._pace.tokens_per_s,
            idle_seconds=0.0 if self.pulse.in_flight else now - self.pulse.last_used,
            retry_seconds=0.0 if up else max(0.1, self._next_check - now),
        )

    async def measure(self) -> None:
        """Read the figures for the next `report`."""
        self._figures = self.pulse.meter.read()
        if self.is_ready and (load := await self._look()) is not None:
            self._load = load
            self._pace.see(load)

    async def run(self) -> None:
        """Check it for ever; returns only by cancellation."""
        backoff = Backoff(0.5, self._check_every)
        try:
            while True:
                try:
                    await self._come_up()
                    backoff.reset()
                    await self._watch()
                except _Down as down:
                    self._lose(str(down))
                pause = backoff.pause()
                self._next_check = time.monotonic() + pause
                await asyncio.sleep(pause)
        finally:
            if self.client is not None:
                self.client.close()

    async def _come_up(self) -> None:
        await self._check()
        assert self.client is not None
        try:
            why = await one_token(self.client, self._served, self._settings.load_seconds)
        except EngineError as error:
            raise _Down(str(error)) from error
        if why is not None:
            raise _Down(f"it generates nothing: {why}")
        log.event(_logger, logging.INFO, "model ready", model=self.choice.name, at=self.choice.where)
        self.pulse.meter.read()
        self.is_ready, self._known_down, self.reason = True, False, ""
        self._on_change()

    async def _watch(self) -> None:
        """While it serves. Raises `_Down`."""
        # Not asked for tokens while it is idle: such servers unload by themselves what is not used.
        patience = Patience(self._settings.canary_seconds, float("inf"), 0.0)
        watching = until_hung(self.pulse, patience, look=self._look, canary=self._canary, only_by_steps=True)
        async with beside(watching) as tasks:
            (hung,) = tasks
            while not hung.done():
                await first_of(tasks, self._check_every)
                if not hung.done():
                    await self._check()
            raise _Down(hung.result())

    def _lose(self, why: str) -> None:
        if self.is_ready or not self._known_down or why != self.reason:
            words = "an engine that is not ours does not serve"
            where = self.choice.where
            log.event(_logger, logging.WARNING, words, model=self.choice.name, at=where, why=why)
        was_ready, self.is_ready = self.is_ready, False
        changed = was_ready or not self._known_down
        self.reason, self._known_down = why, True
        if was_ready:
            self._on_lost(self.choice.name, f"the engine does not serve any more: {why}")
        if changed:
            self._on_change()

    async def _check(self) -> None:
        """That it answers and has the model. Raises `_Down`."""
        assert self.client is not None
        try:
            status, body = await self.client.get("/v1/models", timeout=_ANSWER_SECONDS)
            if status != 200:
                raise _Down(f"/v1/models answers HTTP {status}")
            cards = msgspec.json.decode(body, type=_Cards).data
        except EngineError as error:
            raise _Down(str(error)) from error
        except msgspec.MsgspecError as error:
            raise _Down("/v1/models does not answer as an OpenAI-compatible server does") from error
        if not self.choice.served_name and len(cards) == 1:
            self._served = cards[0].id
        card = next((card for card in cards if card.id == self._served), None)
        if card is None:
            has = ", ".join(card.id for card in cards[:10]) or "none"
            raise _Down(f"it has no model {self._served}; it has: {has}")
        self.max_model_len = card.max_model_len or 0

    async def _look(self) -> EngineLoad | None:
        assert self.client is not None
        return await load_of(self.client)

    async def _canary(self, seconds: float) -> bool:
        assert self.client is not None
        return await is_alive(self.client, self._served, seconds)
