"""The limits of keys: one atomic step of `limits.lua` admits a request, another corrects what it took.

Only requests of keys with limits come here; others pay nothing. The step is not the board's: exact limits
need no joint step, since what the board refuses is given back whole. Tokens are reserved by an estimate (the
body at four bytes a token, and what the caller allows the answer) and corrected when the work is over. What
a key far from its limits is going to ask for is counted in advance, and admitted here (`api.allowance`).

When Redis was emptied the windows start anew, and so do permits of what is under way; budgets do not, since
each request brings along what the ledger has of them (to within 5 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from msgspec import Struct

from api import limits_in_words, periods
from api.allowance import Allowance, Pace
from api.authentication import Caller, Limits
from api.errors import Headers
from gputorrent import entropy
from gputorrent.chosen import settings
from gputorrent.redis import Pipe, blocking
from gputorrent.steps import Heard, Steps
from jobs.errors import BrokerUnavailable
from jobs.interactive import InteractiveJob, Request
from jobs.models import Job

log = logging.getLogger(__name__)

_SOURCE: Final = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")
_MOST_OWED: Final = 100_000
_CALLERS_MISTAKES: Final = frozenset({"model_not_found"})


class Permit(Struct, eq=False):
    """Leave for one request, or the question for it. It is settled exactly once, or void when its web process
    is gone."""

    limiter: Limiter
    key: int
    name: str
    waits: bool  # the caller does; not for asynchronous work
    limits: Limits
    tokens: int  # reserved for it
    asked: asyncio.Future[Any] | None = None
    """The question that was put to Redis. Without one it has been granted, by an allowance."""
    allowance: Allowance | None = None
    ended: bool = False
    _headers: Headers | None = None

    @property
    def headers(self) -> Headers:
        """What the caller is told of his limits, once this was granted or refused."""
        if self._headers is None:
            allowance = self.allowance
            left = allowance.left(time.monotonic()) if allowance is not None else None
            self._headers = limits_in_words.told(self.limits, *left) if left else []
        return self._headers

    @property
    def proof(self) -> tuple[str, str] | None:
        """A hash in Redis and the field that it has while this holds: whatever is asked of Redis behind the
        question can depend on it, without waiting for the answer. None: it has been granted."""
        return (f"gt:limits:open:{self.key}", self.name) if self.asked is not None else None

    async def granted(self) -> None:
        """Wait for the answer. Raises `ApiError` 429, `BrokerUnavailable`."""
        if self.asked is None:
            return
        answer = await self._answer()
        if answer[0] != b"ok" and self.limiter.regain(self):
            answer = await self._answer()
        verdict, *left, retry_ms, _ = answer[:7]
        self._headers = limits_in_words.told(self.limits, *left)
        if verdict != b"ok":
            self.limiter.ended(self)
            raise limits_in_words.refusal(
                verdict.decode(), self.limits, self.tokens, retry_ms / 1000, self.headers
            )

    async def _answer(self) -> list[Any]:
        assert self.asked is not None
        try:
            answer: list[Any] = await self.asked
        except redis.RedisError as e:
            log.warning("redis unavailable error=%s", type(e).__name__)
            self.limiter.owe(self)  # it may have been counted all the same
            raise BrokerUnavailable("the queue is unavailable for the moment") from None
        self.limiter.known(self.key).tight = bool(answer[6])
        return answer

    @property
    def pressing(self) -> bool:
        """More than half of something that it gives back is used: others may wait for it."""
        return self.limiter.known(self.key).tight

    def over(self, job: InteractiveJob, heard: Heard) -> None:
        """The job is over: what it really took counts. Refused before it reached a node, it took nothing."""
        refused = not job.left_at and not job.reached_a_node
        served = not refused or job.error_code in _CALLERS_MISTAKES
        self.limiter.tell_settled(self, job.spent_tokens, served=served, heard=heard)

    async def give_back(self) -> None:
        """Nothing came of it."""
        await self.limiter.settle(self, 0, served=False)


@dataclass(slots=True)
class Known:
    """What this process knows of one key."""

    tight: bool = True
    """Whether more than half of something was used when it asked last: others may wait for what a settlement
    gives back."""
    pace: Pace = field(default_factory=Pace)
    allowance: Allowance | None = None  # the open one
    asking: bool = False  # for an allowance
    had_until: float = 0.0
    """When the second of the last allowance is over, by `time.monotonic`."""


class Limiter:
    """Admits requests for one web process."""

    def __init__(self, pipe: Pipe, web: str) -> None:
        self._pipe, self._script = pipe, Steps(pipe, _SOURCE)
        self._web = web
        self._owed: list[tuple[Any, ...]] = []
        self._unsure: list[Allowance] = []  # whose account may not have been heard
        self._keys: dict[int, Known] = defaultdict(Known)

    async def stop(self) -> None:
        """Give back what this process was allowed and has not used."""
        for known in self._keys.values():
            self._close(known)
        with contextlib.suppress(redis.RedisError):
            await self._pipe.send("PING")  # answered behind all that

    async def admit(
        self, caller: Caller, request: Request, *, context: int = 0, deferred: str = ""
    ) -> Permit | None:
        """Weigh a request against its key's limits and count it; None if the key has none. Arguments as for
        `ask`. Raises `ApiError` 429, `BrokerUnavailable`.
        """
        if caller.limits is None:
            return None
        permit = self.ask(caller, caller.limits, request, context=context, deferred=deferred)
        try:
            await permit.granted()
        except asyncio.CancelledError:  # whoever asked left; it is counted, or is going to be
            self.settle_soon(permit, 0, served=False)
            raise
        return permit

    def ask(
        self, caller: Caller, limits: Limits, request: Request, *, context: int = 0, deferred: str = ""
    ) -> Permit:
        """The same, under way at once: `Permit.granted` waits for the answer, and `Permit.over` is owed
        unless that refuses.

        `context` is the longest the model can take (tokens; 0: unknown), `deferred` the id of an asynchronous
        job.
        """
        tokens = estimate(request, context)
        if deferred:
            permit = Permit(self, caller.key, deferred, waits=False, limits=limits, tokens=tokens, ended=True)
            permit.asked = self._script.ask(*self._question(permit))
            return permit
        known, now = self._keys[caller.key], time.monotonic()
        known.pace.begun(now)
        allowance = known.allowance
        if allowance is not None and allowance.take(tokens, now):
            return Permit(self, caller.key, "", waits=True, limits=limits, tokens=tokens, allowance=allowance)
        permit = Permit(self, caller.key, entropy.take()[:8].hex(), waits=True, limits=limits, tokens=tokens)
        wants = None if known.asking else known.pace.wants()
        if wants is None:
            permit.asked = self._script.ask(*self._question(permit))
        else:
            permit.asked = self._ask_for_more(known, permit, wants)
        return permit

    def _ask_for_more(self, known: Known, permit: Permit, wants: tuple[int, int]) -> asyncio.Future[Any]:
        """The question for a permit, and for an allowance: that is taken even if the caller leaves."""
        known.asking = True
        name, asked_at = entropy.take()[:8].hex(), time.monotonic()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def heard(answer: Any) -> None:
            known.asking = False
            if isinstance(answer, Exception):
                self._owe(Allowance.unused(permit.key, name))
            elif len(answer) > 7:
                requests, tokens, slots, lasts_ms = answer[7:]
                until, beside = asked_at + lasts_ms / 1000, (answer[1] - requests, answer[2] - tokens)
                told = (*beside, *answer[3:5])
                it = Allowance(permit.key, name, until, requests, tokens, slots, told=told, at=asked_at)
                self._allowed(known, it)
            _give(future, answer)

        self._script.tell(*self._question(permit), name, *wants, heard=heard)
        return future

    def _allowed(self, known: Known, allowance: Allowance) -> None:
        self._close(known)
        known.allowance, known.had_until = allowance, allowance.until

        def over() -> None:
            if known.allowance is allowance:
                self._close(known)

        left = allowance.until - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, over)
        else:
            over()

    def _close(self, known: Known) -> None:
        """The rest of a key's allowance goes back."""
        allowance, known.allowance = known.allowance, None
        if allowance is not None:
            allowance.close()
            self._account(allowance)

    def _account(self, allowance: Allowance) -> None:
        """Tell Redis the next of a closed allowance."""
        if account := allowance.account():
            self._tell_account(allowance, account)

    def _tell_account(self, allowance: Allowance, account: tuple[Any, ...]) -> None:
        def heard(answer: Any) -> None:
            if isinstance(answer, Exception):
                self._unsure.append(allowance)
            else:
                allowance.heard()
                self._account(allowance)

        self._script.tell(*account, heard=heard)

    def regain(self, permit: Permit) -> bool:
        """A permit was refused. If this process was allowed something in advance just then, that goes back,
        and the question is put again."""
        known = self._keys[permit.key]
        if not permit.waits or time.monotonic() >= known.had_until:
            return False
        self._close(known)
        permit.asked = self._script.ask(*self._question(permit))
        return True

    def known(self, key: int) -> Known:
        """What this process knows of a key."""
        return self._keys[key]

    def ended(self, permit: Permit) -> bool:
        """A permit counts no more among those under way. False: it did not."""
        if permit.ended:
            return False
        permit.ended = True
        self._keys[permit.key].pace.ended()
        return True

    def _question(self, permit: Permit) -> tuple[Any, ...]:
        day, month = periods.now()
        limits, spent = permit.limits, permit.limits.spent
        return (
            "admit",
            permit.key,
            permit.name,
            self._web if permit.waits else "",
            0 if permit.waits else int(settings.RESULT_TTL_SECONDS + settings.TOTAL_SECONDS),
            permit.tokens,
            limits.concurrency,
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.tokens_per_day,
            limits.tokens_per_month,
            day,
            month,
            spent.day_tokens if spent.day == day else 0,
            spent.month_tokens if spent.month == month else 0,
        )

    async def settle(self, permit: Permit, tokens: int, *, served: bool) -> None:
        """Correct what a permit took. Kept and tried again (`catch_up`) while Redis is away."""
        with contextlib.suppress(redis.RedisError):
            await self.settle_soon(permit, tokens, served=served)

    def settle_soon(self, permit: Permit, tokens: int, *, served: bool) -> asyncio.Future[Any]:
        """The same, under way at once. The future may fail; it is tried again all the same."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.tell_settled(permit, tokens, served=served, heard=lambda answer: _give(done, answer))
        return done

    def tell_settled(self, permit: Permit, tokens: int, *, served: bool, heard: Heard) -> None:
        """The same for who does not wait."""
        counted = self.ended(permit)
        if (allowance := permit.allowance) is not None:
            if counted:
                allowance.over(permit.tokens, tokens, served=served, periods=periods.now())
                if allowance.tokens < 0:  # it took more than was counted
                    self._close(self._keys[permit.key])
                elif allowance.closed:
                    self._account(allowance)
            heard(int(counted))
            return
        settlement = _settlement(permit, tokens, served=served)

        def answered(answer: Any) -> None:
            if isinstance(answer, Exception):
                self._owe(settlement)
            heard(answer)

        self._script.tell(*settlement, heard=answered)

    async def catch_up(self) -> None:
        """Send the settlements that could not be sent. Safe to repeat: each changes something once."""
        unsure, self._unsure = self._unsure, []
        for allowance in unsure:
            assert allowance.sent is not None
            self._tell_account(allowance, allowance.sent)
        owed, self._owed = self._owed, []
        for n, settlement in enumerate(owed):
            try:
                await self._script(*settlement)
            except redis.RedisError:
                self._owed += owed[n:]
                return

    def owe(self, permit: Permit) -> None:
        """Nobody knows whether it was counted: give it back as soon as Redis can be asked."""
        self.ended(permit)
        self._owe(_settlement(permit, 0, served=False))

    def _owe(self, settlement: tuple[Any, ...]) -> None:
        if len(self._owed) < _MOST_OWED:
            self._owed.append(settlement)


def estimate(request: Request, context: int = 0) -> int:
    """Tokens to reserve for a request: its prompts, each of which is no longer than the model's context, and
    the answer that it allows."""
    prompt, answer = request.prompt_tokens_about, request.answer_tokens
    if answer is None:
        answer = settings.ANSWER_TOKENS_ASSUMED
    return (min(prompt, context * request.prompts) if context else prompt) + answer


def deferred_ended(job: Job) -> None:
    """An asynchronous job has ended, in whichever process: settle its permit, if its key has limits."""
    if job.key_id is None:
        return
    tokens = job.prompt_tokens + job.completion_tokens
    day, month = periods.now()
    try:
        step = Steps.alone("settle", job.key_id, job.id, 0, tokens, 1, day, month)
        blocking().register_script(Steps.whole(_SOURCE))(args=step)
    except redis.RedisError as e:
        log.warning("redis unavailable error=%s job=%s: its permit runs out", type(e).__name__, job.id)


def _give(future: asyncio.Future[Any], answer: Any) -> None:
    """An answer, or the exception in its place, to whoever waits."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        future.exception()  # nobody may be waiting
    else:
        future.set_result(answer)


def _settlement(permit: Permit, tokens: int, *, served: bool) -> tuple[Any, ...]:
    day, month = periods.now()
    return ("settle", permit.key, permit.name, int(permit.waits), tokens, int(served), day, month)
