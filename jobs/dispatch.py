"""What can be done with a job whose caller waits: submit, first, follow, abandon, cancel (see `jobs.errors`).

A `Dispatcher` belongs to one web process. `jobs.watch` looks at its jobs a few times a second and ends what
is overdue, so a request costs no timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Final

import redis

from gputorrent.chosen import settings
from gputorrent.redis import Pipe, asynchronous
from jobs import breaker, counting, interactive, metrics, routing
from jobs.afterwards import Afterwards
from jobs.board import Board, Full, Placed, Proof, Waiting, released
from jobs.effects import Effects
from jobs.errors import (
    BrokerUnavailable,
    Cancelled,
    FirstTokenTimeout,
    JobError,
    ModelLoading,
    NotPermitted,
    QueueTimeout,
    UpstreamFailed,
)
from jobs.interactive import InteractiveJob, Leave, Lost, Request, in_words, pause_before_next
from jobs.lifecycle import Move
from jobs.mailbox import Mailbox
from jobs.metrics import Metrics
from jobs.outlook import Outlook
from jobs.recorder import Recorder
from jobs.refusal import queue_full
from jobs.tail import Tails
from jobs.wishes import LoadWishes
from worker_agent.contract import Chunk, Done, Failed, Outcome

log = logging.getLogger(__name__)

STATE = "gputorrent.dispatcher"
"""Where the process's dispatcher lies in the state that the server hands to each request."""
_NOWHERE_YET: Final[set[str]] = set()


class Dispatcher:
    """The live jobs of one web process, and the parts they need."""

    def __init__(self) -> None:
        pipe = Pipe(asynchronous())
        self.pipe = pipe
        self.board = Board(pipe)
        self.mailbox = Mailbox(pipe, on_cancel=lambda job: self.cancel(job, Cancelled()))
        self.outlook = Outlook()
        self.recorder = Recorder()
        self.tails = Tails()
        self.metrics = Metrics(pipe, self.mailbox.web)
        self.metrics.sample(metrics.STALE, lambda: self.mailbox.stale)
        self.metrics.sample(metrics.DROPPED, lambda: self.recorder.dropped)
        self.jobs: dict[str, InteractiveJob] = {}
        self.mailbox.on_placed = lambda job: self.recorder.note(self.jobs[job])
        self._effect, self._afterwards = Effects(), Afterwards(self._after)
        self.wishes = LoadWishes(self.mailbox, self._effect)

    async def start(self) -> None:
        """Open the wire. Raises `redis.RedisError` when Redis is away."""
        await self.mailbox.start()
        self.recorder.start()

    async def stop(self) -> None:
        """End what is left, write the records, close the wire."""
        self._afterwards.all()
        for job in list(self.jobs.values()):
            self.abandon(job)
        await self._effect.over(2.0)
        for job in list(self.jobs.values()):
            self._forget(job)  # abandoned above, and nobody is left to hear how its node takes it
        await self.mailbox.stop()
        await self.recorder.stop()
        with suppress(redis.RedisError):
            await self.metrics.flush()
        await self.pipe.close()

    # -- the verbs -----------------------------------------------------------------------------

    async def submit(
        self, request: Request, leave: Leave | None = None, proof: Proof = None
    ) -> InteractiveJob:
        """Accept a job: it is placed, or it waits. Raises `JobError`, and without a trace `NotPermitted`
        where Redis has no such `proof` (see `Board.reserve`)."""
        new_id, web = interactive.new_job_id(), self.mailbox.web
        job = InteractiveJob(new_id, request, settings.STREAM_BUFFER_BYTES, web=web, leave=leave)
        self.jobs[job.id] = job
        job.tail = self.tails.begin(job, request.key)
        try:
            await self._place(job, proof)
        except BaseException as e:
            self._stopped_by(job, e)
            raise
        self.recorder.note(job)
        self._afterwards.all()  # the node is at it, and this process has time
        return job

    async def first(self, job: InteractiveJob) -> Chunk | Done:
        """Wait for the first of the answer, trying other nodes while nothing has come.

        Returns a chunk, or the whole answer (whose `status` may be a 4xx: the caller's mistake). Raises
        `JobError`. A caller that leaves cancels this coroutine, which ends the job.
        """
        try:
            while True:
                event = await job.next()
                if isinstance(event, (Chunk, Done)):
                    self.outlook.affinity.remember(job.request.prefix, job.node)
                    if isinstance(event, Done):
                        self._finished(job, event)
                    return event
                await self._attempt_failed(job, event)
                await self._place(job)
                self.recorder.note(job)
        except BaseException as e:
            self._stopped_by(job, e)
            raise

    def _stopped_by(self, job: InteractiveJob, error: BaseException) -> None:
        """Whatever stops the caller from getting an answer ends the job."""
        if isinstance(error, NotPermitted):
            self._drop(job)
        elif isinstance(error, JobError):
            error.job = job.id
            self._end(job, error.move, code=error.code, message=str(error))
        else:
            self.abandon(job)

    async def follow(
        self, job: InteractiveJob, first: bytes = b"", told: Callable[[JobError, int], bytes] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The first chunk if it is given, and what comes after it, to the end. Where that breaks off: what
        `told` makes of the error and the number of events before it, or without `told` the error.

        Closing the iterator early is the caller leaving. What the job's sink takes does not come by here
        (see `jobs.outflow`): whoever sets one has written all that came before he asks for the next.
        """
        seen = first.count(b"\n\n")
        try:
            if first:
                yield first
            while True:
                event = await job.next(flowing=True)
                if isinstance(event, Chunk):
                    seen += event.data.count(b"\n\n")
                    yield event.data
                elif isinstance(event, Done):
                    self._finished(job, event)
                    yield event.body
                    return
                else:
                    error = UpstreamFailed(in_words(event))
                    self.settle(job)
                    self._end(job, Move.FAIL, code=error.code, message=str(error))
                    raise error
        except JobError as e:
            if told is None:
                raise
            yield told(e, seen + job.passed)
        finally:
            if not job.ended:
                self.abandon(job)

    def abandon(self, job: InteractiveJob, code: str = "client_closed") -> None:
        """The caller has gone: stop the work. The slot comes back when the node has stopped."""
        if job.left_at or job.ended:
            return
        job.left_at = time.monotonic()
        job.move(Move.CANCEL)
        job.error_code = code
        self.recorder.note(job)
        if job.attempt == 0:
            self._forget(job)
        elif job.current.outcome:
            self.settle(job)  # its end was on the way to the caller, or it lies between two attempts
            self._forget(job)
        elif not job.node:
            self._effect(self._leave_queue(job))
        self.stop_left(job)

    def cancel(self, job_id: str, error: JobError) -> bool:
        """End a job whose caller still waits, and is told `error`. False if none such lives here."""
        job = self.jobs.get(job_id)
        if job is None or job.left_at or job.ended:
            return False
        job.error_message = str(error)
        self.abandon(job, error.code)
        job.stop(error)
        return True

    def stop_left(self, job: InteractiveJob) -> None:
        """Tell the node to stop what nobody waits for any more, once it is known which node that is.

        The job stays known to the mailbox until the node has answered (see `jobs.watch`).
        """
        if job.node and not job.cancel_sent and not job.current.outcome:
            job.cancel_sent = True
            self._effect(self.mailbox.cancel(job.node, job.id, job.attempt))

    async def _leave_queue(self, job: InteractiveJob) -> None:
        # If it does not wait, the board has just placed it, and the word of that is on its way.
        if await self.board.leave(job.id):
            self.clear_abandoned(job)

    def clear_abandoned(self, job: InteractiveJob) -> None:
        """The node has stopped an abandoned attempt, or is not going to say so."""
        job.attempt_over(Outcome.CANCELLED, job.error_message or "the caller left")
        self.settle(job)
        self._forget(job)
        self.recorder.note(job)

    def stop_waiting(self, job: InteractiveJob, lost: Lost) -> None:
        """Take a job off the board and end its wait, unless the board has just placed it."""
        if not job.leaving:
            job.leaving = True
            self._effect(self._stop_waiting(job, lost))

    async def _stop_waiting(self, job: InteractiveJob, lost: Lost) -> None:
        try:
            # If it does not wait, the board has just placed it, and the word of that is on its way; when
            # none comes (Redis lost it), the watch calls again and the wait ends all the same.
            left = await self.board.leave(job.id)
            job.leave_tries += 1
            if left or (not job.node and job.leave_tries > 4):
                job.give_up(lost)
        finally:
            job.leaving = False

    # -- placing -------------------------------------------------------------------------------------

    async def _place(self, job: InteractiveJob, proof: Proof = None) -> None:
        """Claim the next attempt and give it to the board. Raises `JobError` when it can go nowhere."""
        request = job.request
        self.outlook.check_held_off(request)
        tried, visited = (job.tried, job.visited) if job.tries else (_NOWHERE_YET, _NOWHERE_YET)
        decision = self.outlook.decide(request, visited)
        if isinstance(decision, routing.Refuse) and visited != tried:
            decision = self.outlook.decide(request, tried)
        if isinstance(decision, routing.Refuse):
            ended = (job.current.reason or job.current.outcome) if job.tries else ""
            raise self.outlook.refusal(request.model, decision, ended)
        job.claim()
        if isinstance(decision, routing.Place):
            place, job.wait_limit = decision, settings.QUEUE_SECONDS
        else:  # a model is loaded first
            place, job.wait_limit = routing.NOWHERE, settings.LOAD_SECONDS
        self.mailbox.expect(job.id, job)
        turn = self.outlook.spreading.take(request.model, place.order)
        try:
            answer = await self.board.reserve(
                self.mailbox.work(job),
                [scored.node for scored in place.order],
                tenant=request.tenant,
                priority=request.priority,
                wait_seconds=job.wait_limit,
                tried=tried | decision.barred,
                only=request.only,
                others=place.later,
                proof=proof,
                late=lambda told: self._reserved_too_late(job, told),
            )
        except redis.RedisError as e:
            log.warning("redis unavailable error=%s job=%s", type(e).__name__, job.id)
            job.attempt_over("not_placed", "the broker is unavailable")
            raise BrokerUnavailable("the queue is unavailable for the moment") from None
        except NotPermitted:
            turn.settle(None)
            raise
        taken = place.scored(answer.node) if isinstance(answer, Placed) else None
        turn.settle(taken)
        if isinstance(decision, routing.Load):
            self.wishes.ask(decision.node, request.model)
        if isinstance(answer, Placed):
            job.why = str(taken or "")
            self._placed(job, answer.node)
        elif isinstance(answer, Full):
            job.attempt_over("not_placed", "the queue is full")
            raise queue_full(request.model, answer)
        elif isinstance(answer, Waiting):
            job.why = "waited for a free slot" if place.order else "waited for the model to be loaded"

    def _placed(self, job: InteractiveJob, node: str) -> None:
        job.on_placed(node, self.outlook.placed(node, job.request.model))

    def _reserved_too_late(self, job: InteractiveJob, answer: Placed | Waiting | Full) -> None:
        """The caller left while the board was being asked: what it did must still be undone."""
        if isinstance(answer, Placed):
            self._placed(job, answer.node)
        self.stop_left(job)

    async def _attempt_failed(self, job: InteractiveJob, event: Failed | Lost) -> None:
        """Clear up after an attempt that failed before the first byte. Raises unless another may follow."""
        settled = self.settle(job)
        outcome = event.outcome
        if outcome == interactive.QUEUE_TIMEOUT:
            raise QueueTimeout(event.message)
        if outcome == interactive.LOAD_TIMEOUT:
            raise ModelLoading(event.message)
        if isinstance(event, Lost) and isinstance(event.error, JobError):
            raise event.error
        if outcome == Outcome.FIRST_TOKEN_TIMEOUT:
            raise FirstTokenTimeout(event.message or "no token came in time")
        if outcome == Outcome.ENGINE_DIED and settled:
            await asyncio.wait({settled})  # its strikes count for whatever comes next
        if outcome not in interactive.RETRYABLE or job.attempt >= settings.ATTEMPTS:
            raise UpstreamFailed(in_words(event))
        log.info("job=%s attempt=%d node=%s outcome=%s: trying again", job.id, job.attempt, job.node, outcome)
        await asyncio.sleep(pause_before_next(job, outcome))

    def settle(self, job: InteractiveJob) -> asyncio.Future[Any] | None:
        """Give back the slot of an attempt that is over, once; if its node may still be at it, say stop.

        The watch asks too: a caller who reads slowly hears of the end late, and holds no slot till then.
        Returns the future of the slot given back, if there is one to give.
        """
        if job.settled == job.attempt:
            return None
        job.settled = job.attempt
        this = job.current
        node, outcome = this.node, this.outcome
        if node and this.given_up:
            self._effect(self.mailbox.cancel(node, job.id, job.attempt))
        if not node:
            # At once: as a task it would run after the next attempt has joined the queue, and take that out.
            self._effect(self.board.leave_soon(job.id))
            return None
        self.outlook.left(node, job.request.model)
        suspect, verdict = self.outlook.suspect(job.request, outcome), breaker.verdict(outcome)
        place = node, job.request.model, job.id, job.attempt
        if not suspect and outcome != Outcome.ENGINE_DIED:  # nobody waits for it
            self.board.give_back(*place, verdict, heard=self._effect.hears())
            return None
        given_back = self.board.release_soon(*place, verdict, suspect)
        if suspect:
            given_back.add_done_callback(lambda done: self._struck(suspect, done))
        return self._effect(given_back)

    def _struck(self, suspect: str, done: asyncio.Future[Any]) -> None:
        """What the board counted against the request, as it gave its slot back."""
        if not done.cancelled() and not done.exception() and (strikes := released(done.result()).strikes):
            self.outlook.struck(suspect, strikes)

    # -- ending --------------------------------------------------------------------------------------

    def _finished(self, job: InteractiveJob, done: Done) -> None:
        """The answer is complete, and is written before anything else is done for the job."""
        job.http_status = done.status
        if done.status < 400:
            self._ends(job, Move.COMPLETE)
        else:
            self._ends(job, Move.FAIL, "rejected_by_engine", f"the engine answered {done.status}")
        pressing = job.leave is not None and job.leave.pressing
        self._afterwards.add(job, soon=pressing or not self.outlook.roomy(job.node, job.request.model))

    def _after(self, job: InteractiveJob) -> None:
        self.settle(job)
        self._over(job)

    def _end(self, job: InteractiveJob, how: Move, *, code: str = "", message: str = "") -> None:
        self._ends(job, how, code, message)
        self._over(job)

    def _ends(self, job: InteractiveJob, how: Move, code: str = "", message: str = "") -> None:
        if not job.left_at and job.move(how):
            job.error_code, job.error_message = code, message

    def _over(self, job: InteractiveJob) -> None:
        if not job.left_at:  # else its end is noted; the end of its attempt is seen to by the watch
            self._forget(job)
            if job.attempt:
                self.recorder.note(job)

    def _forget(self, job: InteractiveJob) -> None:
        if self._drop(job):
            counting.job_over(self.metrics, job, self.outlook.snapshot)
            if job.leave:
                job.leave.over(job, self._effect.hears())

    def _drop(self, job: InteractiveJob) -> bool:
        """Know nothing of it any more. Returns whether it was known."""
        self.mailbox.forget(job.id)
        self.tails.over(job.id)
        job.tail = None  # which knows the job: a ring of the two would wait for the collector
        return self.jobs.pop(job.id, None) is not None
