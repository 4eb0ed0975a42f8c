"""One `Work` against the local engine: its bytes out, replies back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker_agent import responses, sse
from worker_agent.contract import RESPONSES, Chunk, Done, Failed, Outcome, Reply, Usage, Work
from worker_agent.engine_client import Answer, EngineClient, EngineDied, EngineUnreachable
from worker_agent.meter import Meter
from worker_agent.serving import Translation

Emit = Callable[[Reply], bool]
"""Takes a reply for sending and returns at once; False if too much is owed already and it was dropped."""


class _Verdict(Exception):
    """How the attempt failed."""

    def __init__(self, outcome: Outcome, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome, self.message, self.status, self.retry_after = outcome, message, status, retry_after


class Completion:
    """Runs one attempt. Exactly one `Done` or `Failed` is emitted, after any number of `Chunk`."""

    def __init__(
        self,
        work: Work,
        engine: EngineClient,
        emit: Emit,
        meter: Meter,
        translation: Translation | None = None,
    ) -> None:
        self.work, self._translation = work, translation
        self._form = responses if work.path == RESPONSES else sse
        self._engine, self._emit, self._meter = engine, emit, meter
        self._loop = asyncio.get_running_loop()
        self._begun = self._progress = self._loop.time()
        self._first_ms = 0.0
        self._pending = self._held = b""  # an event that has begun; what waits for the first token
        self._usage: Usage | None = None
        self._status, self._content_type = 0, ""
        self._saw_token = False
        self._seq = 0
        self._counted = 0
        self._verdict: _Verdict | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None

    async def run(self) -> Done | Failed:
        """Ask the engine and emit what comes; the last reply is also returned."""
        self._task = asyncio.current_task()
        reply: Done | Failed
        try:
            if self._verdict is not None:
                raise self._verdict
            self._watch()
            reply = await self._ask()
        except asyncio.CancelledError:
            if self._verdict is None or self._task is None:
                raise
            self._task.uncancel()
            reply = self._failed(self._verdict)
        except _Verdict as verdict:
            reply = self._failed(verdict)
        except EngineUnreachable as error:
            reply = self._failed(_Verdict(Outcome.ENGINE_UNREACHABLE, str(error)))
        except EngineDied as error:
            reply = self._failed(_Verdict(Outcome.ENGINE_DIED, str(error)))
        finally:
            if self._timer is not None:
                self._timer.cancel()
        self._emit(reply)
        return reply

    def abort(self, outcome: Outcome, message: str) -> None:
        """End the attempt with this outcome; closing its connection makes the engine abort."""
        if self._verdict is None:
            self._verdict = _Verdict(outcome, message)
            if self._task is not None:
                self._task.cancel()

    def mute(self) -> None:
        """Emit nothing more: nobody reads it."""
        self._emit = _drop

    # -- the engine's answer ---------------------------------------------------------------------------
    async def _ask(self) -> Done:
        work = self.work
        headers = {"x-request-id": work.job}
        if self._translation is None:
            body = self._form.prepared(work.body, work.job)
        else:
            body = self._translation.request(work.body)
        async with self._engine.exchange("POST", work.path, body, headers) as answer:
            if answer.status == 200 and work.stream and answer.content_type.startswith("text/event-stream"):
                self._status, self._content_type = answer.status, answer.content_type
                return await answer.follow(self._take)
            body = await answer.read_all()
            return self._judge(answer, body if self._translation is None else self._translation.answer(body))

    def _judge(self, answer: Answer, body: bytes) -> Done:
        status = answer.status
        if status in (429, 503):
            raise _Verdict(
                Outcome.ENGINE_BUSY, sse.error_message(body) or "busy", status, _seconds(answer.retry_after)
            )
        if status == 501:  # vLLM's for what the model is not made for: the caller's mistake, not the engine's
            return self._done(404, body, answer.content_type, None)
        if status >= 500 or status < 200 or 300 <= status < 400:
            message = sse.error_message(body) or "the engine gave no reason"
            raise _Verdict(Outcome.ENGINE_ERROR, message, status)
        usage = self._form.body_usage(body) if status < 300 else None
        if usage is not None:
            self._count(usage.completion_tokens)
        return self._done(status, body, answer.content_type, usage)

    def _take(self, data: bytes) -> Done | None:
        """A piece of a stream: what is whole in it goes on. Returns the last reply once the stream has ended.
        Runs for every token."""
        events, self._pending = sse.cut(self._pending + data if self._pending else data)
        if not events:
            return None
        form = self._form
        self._progress = self._loop.time()
        if self._translation is not None:
            events = self._translation.events(events)
        if (message := form.error_in(events)) is not None:
            raise _Verdict(Outcome.ENGINE_ERROR, message or "the engine gave no reason")
        if not self._saw_token and form.has_token(events):
            self._saw_token = True
            self._first_ms = (self._progress - self._begun) * 1000
            self._meter.first_token(self._first_ms)
            self._watch()
        self._count(events.count(b"\n\n"))  # about one token each, until the usage says it exactly
        events, told = form.take_usage(events, hide=self.work.hide_usage)
        self._usage = told or self._usage
        events, ended = form.closed(events)
        if self._held:
            events, self._held = self._held + events, b""
        if ended:
            usage = self._usage
            if usage is not None:
                self._count(usage.completion_tokens - self._counted)
            return self._done(self._status, events, self._content_type, usage)
        if form.HELD_BACK and not self._saw_token:
            self._held = events
        elif events:
            self._chunk(events)
        return None

    # -- replies ---------------------------------------------------------------------------------------
    def _count(self, tokens: int) -> None:
        self._counted += tokens
        self._meter.tokens(tokens)

    def _chunk(self, data: bytes) -> None:
        work = self.work
        if not self._emit(Chunk(work.job, work.attempt, work.lease, self._seq, data)):
            raise _Verdict(Outcome.UNDELIVERABLE, "the broker was away too long: too much is owed")
        self._seq += 1

    def _done(self, status: int, body: bytes, content_type: str, usage: Usage | None) -> Done:
        work, total_ms = self.work, (self._loop.time() - self._begun) * 1000
        key = (work.job, work.attempt, work.lease, self._seq)
        return Done(*key, status, body, content_type, usage, self._first_ms, total_ms)

    def _failed(self, verdict: _Verdict) -> Failed:
        work = self.work
        key = (work.job, work.attempt, work.lease, self._seq)
        told = (verdict.outcome, verdict.message, verdict.status, verdict.retry_after)
        return Failed(*key, *told, tokens=self._counted)

    # -- limits ----------------------------------------------------------------------------------------
    def _watch(self) -> None:
        """Check the limits now, and again when the next one could be reached: one timer, not one a token."""
        if self._timer is not None:
            self._timer.cancel()
        now, work = self._loop.time(), self.work
        limits = [(self._begun + work.total_seconds, Outcome.TOTAL_TIMEOUT, "the whole answer")]
        if work.stream and not self._saw_token:
            limits.append(
                (self._begun + work.first_token_seconds, Outcome.FIRST_TOKEN_TIMEOUT, "the first token")
            )
        elif work.stream:
            limits.append((self._progress + work.stall_seconds, Outcome.STALLED, "the next token"))
        for at, outcome, what in limits:
            if at <= now:
                self.abort(outcome, f"{what} took too long")
                return
        self._timer = self._loop.call_at(min(at for at, _, _ in limits), self._watch)


def _drop(_: Reply) -> bool:
    return True


def refused(work: Work, outcome: Outcome, message: str) -> Failed:
    """The reply to work that is not begun."""
    return Failed(work.job, work.attempt, work.lease, 0, outcome, message)


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isdigit() and len(retry_after) < 6 else 0.0
