"""The limits of keys: one atomic step of `limits.lua` admits a request, another corrects what it took.

Only requests of keys with limits come here; others pay nothing. The step is not the board's: exact limits
need no joint step, since what the board refuses is given back whole. Tokens are reserved by an estimate (the
body at four bytes a token, and what the caller allows the answer) and corrected when the work is over.

When Redis was emptied the windows start anew, and so do permits of what is under way; budgets do not, since
each request brings along what the ledger has of them (to within 5 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from api.authentication import Caller, Limits
from api.errors import ApiError, Headers, quota_exceeded, rate_limited
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


@dataclass(slots=True)
class Permit:
    """Leave for one request, or the question for it. It is settled exactly once, or void when its web process
    is gone."""

    limiter: Limiter
    key: int
    name: str
    waits: bool  # the caller does; not for asynchronous work
    limits: Limits
    tokens: int  # reserved for it
    headers: Headers = field(default_factory=list)
    asked: asyncio.Future[Any] | None = None

    @property
    def proof(self) -> tuple[str, str]:
        """A hash in Redis and the field that it has while this holds: whatever is asked of Redis behind the
        question can depend on it, without waiting for the answer."""
        return f"gt:limits:open:{self.key}", self.name

    async def granted(self) -> None:
        """Wait for the answer. Raises `ApiError` 429, `BrokerUnavailable`."""
        assert self.asked is not None
        try:
            verdict, *left, retry_ms, tight = await self.asked
        except redis.RedisError as e:
            log.warning("redis unavailable error=%s", type(e).__name__)
            self.limiter.owe(self)  # it may have been counted all the same
            raise BrokerUnavailable("the queue is unavailable for the moment") from None
        self.headers = _headers(self.limits, *left)
        self.limiter.tight[self.key] = bool(tight)
        if verdict != b"ok":
            raise _refusal(verdict.decode(), self.limits, self.tokens, retry_ms / 1000, self.headers)

    def over(self, job: InteractiveJob, heard: Heard) -> None:
        """The job is over: what it really took counts. Refused before it reached a node, it took nothing."""
        refused = not job.left_at and not any(t.node for t in job.tries)
        served = not refused or job.error_code in _CALLERS_MISTAKES
        self.limiter.tell_settled(self, job.spent_tokens, served=served, heard=heard)

    async def give_back(self) -> None:
        """Nothing came of it."""
        await self.limiter.settle(self, 0, served=False)


class Limiter:
    """Admits requests for one web process."""

    def __init__(self, pipe: Pipe, web: str) -> None:
        self._script = Steps(pipe, _SOURCE)
        self._web = web
        self._owed: list[tuple[Any, ...]] = []
        self.tight: dict[int, bool] = {}
        """By key, whether more than half of something was used when this process asked last: others may wait
        for what a settlement gives back."""

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
        name = deferred or entropy.take()[:8].hex()
        permit = Permit(self, caller.key, name, waits=not deferred, limits=limits, tokens=tokens)
        permit.asked = self._script.ask(*self._question(permit))
        return permit

    def _question(self, permit: Permit) -> tuple[Any, ...]:
        day, month = _periods()
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

        def heard(answer: Any) -> None:
            if done.done():
                return
            if isinstance(answer, Exception):
                done.set_exception(answer)
                done.exception()  # nobody may be waiting
            else:
                done.set_result(answer)

        self.tell_settled(permit, tokens, served=served, heard=heard)
        return done

    def tell_settled(self, permit: Permit, tokens: int, *, served: bool, heard: Heard) -> None:
        """The same for who does not wait: with whatever is asked next, unless others wait for it."""
        settlement = _settlement(permit, tokens, served=served)

        def answered(answer: Any) -> None:
            if isinstance(answer, Exception):
                self._owe(settlement)
            heard(answer)

        self._script.tell(*settlement, heard=answered, soon=self.tight.get(permit.key, True))

    async def catch_up(self) -> None:
        """Send the settlements that could not be sent. Safe to repeat: each changes something once."""
        owed, self._owed = self._owed, []
        for n, settlement in enumerate(owed):
            try:
                await self._script(*settlement)
            except redis.RedisError:
                self._owed += owed[n:]
                return

    def owe(self, permit: Permit) -> None:
        """Nobody knows whether it was counted: give it back as soon as Redis can be asked."""
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
    day, month = _periods()
    try:
        step = Steps.alone("settle", job.key_id, job.id, 0, tokens, 1, day, month)
        blocking().register_script(Steps.whole(_SOURCE))(args=step)
    except redis.RedisError as e:
        log.warning("redis unavailable error=%s job=%s: its permit runs out", type(e).__name__, job.id)


def _settlement(permit: Permit, tokens: int, *, served: bool) -> tuple[Any, ...]:
    day, month = _periods()
    return ("settle", permit.key, permit.name, int(permit.waits), tokens, int(served), day, month)


def _periods() -> tuple[str, str]:
    """The names of today and of this month, in UTC."""
    return _periods_of(int(time.time() // 86400))


@functools.lru_cache(maxsize=2)
def _periods_of(days: int) -> tuple[str, str]:
    """By the days since the epoch."""
    day = (datetime.date(1970, 1, 1) + datetime.timedelta(days)).isoformat()
    return day, day[:7]


# -- in words ------------------------------------------------------------------------------------------


def _refusal(verdict: str, limits: Limits, tokens: int, retry: float, headers: Headers) -> ApiError:
    if verdict == "requests":
        said = f"Rate limit reached: {limits.requests_per_minute} requests per minute."
        return rate_limited(f"{said} Try again in {span(retry)}.", headers, retry)
    if verdict == "tokens":
        said = f"{limits.tokens_per_minute} tokens per minute, and about {tokens} are asked for."
        if tokens > limits.tokens_per_minute:
            said = f"Request too large: the limit is {said} Shorten the prompt, or ask for fewer tokens."
            return rate_limited(said, headers, None)
        return rate_limited(f"Rate limit reached: {said} Try again in {span(retry)}.", headers, retry)
    if verdict == "concurrency":
        said = f"Rate limit reached: {limits.concurrency} requests at once."
        return rate_limited(f"{said} Wait until one has ended.", headers, retry)
    now = datetime.datetime.now(datetime.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if verdict == "day":
        budget, ends = limits.tokens_per_day, midnight + datetime.timedelta(days=1)
    else:
        budget = limits.tokens_per_month
        ends = (midnight.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    wait = retry or (ends - now).total_seconds()
    said = f"The budget of this API key is {budget} tokens a {verdict} (UTC); what is left of it is less than"
    return quota_exceeded(f"{said} the about {tokens} that are asked for.", headers, wait)


def _headers(
    limits: Limits, left_requests: int, left_tokens: int, reset_requests: int, reset_tokens: int
) -> Headers:
    """OpenAI's headers for the limits that the key has. Resets in ms."""
    found: Headers = []
    for what, limit, left, reset in (
        (b"requests", limits.requests_per_minute, left_requests, reset_requests),
        (b"tokens", limits.tokens_per_minute, left_tokens, reset_tokens),
    ):
        if limit:
            found.append((b"x-ratelimit-limit-" + what, str(limit).encode()))
            found.append((b"x-ratelimit-remaining-" + what, str(max(0, left)).encode()))
            found.append((b"x-ratelimit-reset-" + what, span(reset / 1000).encode()))
    return found


def span(seconds: float) -> str:
    """A time as OpenAI writes it: ``120ms``, ``1s``, ``6m0s``, ``2h0m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
