"""The work on this node: which attempts run, and every way they are begun and ended from outside."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from worker_agent import log
from worker_agent.completion import Completion, Emit, refused
from worker_agent.contract import Done, Failed, Outcome, Reply, Work
from worker_agent.serving import Server

_logger = logging.getLogger(__name__)

_REMEMBERED = 10_000
Key = tuple[str, int]


class Attempts:
    """Begins work at once, as much as comes: the coordinator keeps to each model's slots.

    `ready` finds the engine of a model, `send` takes replies to web processes, `report` the word on
    asynchronous work (None: it has started); `on_idle` is called when a model has no work left.
    """

    def __init__(
        self,
        *,
        ready: Callable[[str], Server | None],
        send: Callable[[str, Reply], bool],
        report: Callable[[Work, Done | Failed | None], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._ready, self._send, self._report, self._on_idle = ready, send, report, on_idle
        self._running: dict[Key, tuple[Completion, asyncio.Task[None]]] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._running)

    def keys(self) -> list[str]:
        """``job:attempt`` of all that runs."""
        return [f"{job}:{attempt}" for job, attempt in self._running]

    def take(self, work: Work) -> None:
        """Begin `work`, or answer why not. An attempt seen before is ignored."""
        key = (work.job, work.attempt)
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        engine = self._ready(work.model)
        if self.draining:
            self._answer(work, refused(work, Outcome.DRAINING, "the node takes no more work"))
        elif engine is None or engine.client is None:
            self._answer(work, refused(work, Outcome.MODEL_NOT_READY, f"{work.model} is not ready here"))
        elif engine.pulse.in_flight >= 2 * engine.slots:
            # The coordinator counts slots; this only keeps a mistake of its from drowning the engine.
            self._answer(work, refused(work, Outcome.ENGINE_BUSY, "twice as much as there are slots"))
        else:
            emit, translation = self._emit_for(work), engine.translation(work)
            completion = Completion(work, engine.client, emit, engine.pulse.meter, translation)
            engine.pulse.began()
            task = asyncio.create_task(self._run(key, completion, engine))
            self._running[key] = (completion, task)
            self._idle.clear()

    def cancel(self, job: str, attempt: int) -> None:
        """End one attempt as asked; unknown ones are ignored."""
        if found := self._running.get((job, attempt)):
            found[0].abort(Outcome.CANCELLED, "cancelled")

    def abandon(self, web: str) -> None:
        """End all work for a web process that no longer reads."""
        for completion, _ in list(self._running.values()):
            if completion.work.reply == web:
                completion.mute()
                completion.abort(Outcome.CANCELLED, "nobody waits for the answer")

    def lose(self, model: str, why: str) -> None:
        """End all work of a model whose engine is lost."""
        for completion, _ in list(self._running.values()):
            if completion.work.model == model:
                completion.abort(Outcome.ENGINE_DIED, why)

    def abort_all(self, outcome: Outcome, message: str) -> None:
        """End everything with this outcome."""
        for completion, _ in list(self._running.values()):
            completion.abort(outcome, message)

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    async def close(self) -> None:
        """Drop what still runs, without a word."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _emit_for(self, work: Work) -> Emit:
        if not work.reply:
            return lambda reply: True  # asynchronous work: only its last word counts, and that is reported
        web, send = work.reply, self._send
        return lambda reply: send(web, reply)

    def _answer(self, work: Work, reply: Failed) -> None:
        if work.reply:
            self._send(work.reply, reply)
        else:
            self._report(work, reply)

    async def _run(self, key: Key, completion: Completion, engine: Server) -> None:
        work, outcome = completion.work, Outcome.CANCELLED
        answered = False
        try:
            if not work.reply:
                self._report(work, None)
            reply = await completion.run()
            answered = isinstance(reply, Done)
            outcome = reply.outcome if isinstance(reply, Failed) else outcome
            if not work.reply:
                self._report(work, reply)
            if isinstance(reply, Failed) and reply.outcome is not Outcome.CANCELLED:
                log.event(
                    _logger,
                    logging.WARNING,
                    "attempt failed",
                    job=work.job,
                    attempt=work.attempt,
                    model=work.model,
                    outcome=reply.outcome,
                    why=reply.message,
                )
        except Exception as error:  # noqa: BLE001 - one attempt must not end the others
            log.event(_logger, logging.ERROR, "attempt broke", job=work.job, why=repr(type(error)))
            self._answer(work, refused(work, Outcome.ENGINE_ERROR, "the agent made a mistake"))
        finally:
            del self._running[key]
            engine.pulse.ended(work, None if answered else outcome)
            if not self._running:
                self._idle.set()
            if engine.pulse.in_flight == 0:
                self._on_idle()
