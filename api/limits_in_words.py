"""What the limits of keys say to their callers: headers, and refusals."""

from __future__ import annotations

import datetime
import functools
from typing import Final

from api.authentication import Limits
from api.errors import ApiError, Headers, quota_exceeded, rate_limited


def refusal(verdict: str, limits: Limits, tokens: int, retry: float, headers: Headers) -> ApiError:
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


def told(
    limits: Limits, left_requests: int, left_tokens: int, reset_requests: int, reset_tokens: int
) -> Headers:
    """OpenAI's headers for the limits that the key has. Resets in ms."""
    found: Headers = []
    for names, limit, left, reset in (
        (_REQUESTS, limits.requests_per_minute, left_requests, reset_requests),
        (_TOKENS, limits.tokens_per_minute, left_tokens, reset_tokens),
    ):
        if limit:
            of_limit, of_left, of_reset = names
            # As finely as it is written, so that there are few of them.
            until = _span(reset if reset < 1000 else (reset + 500) // 1000 * 1000)
            remaining = b"%d" % left if left > 0 else b"0"
            found += (of_limit, b"%d" % limit), (of_left, remaining), (of_reset, until)
    return found


def _names(what: bytes) -> tuple[bytes, bytes, bytes]:
    return b"x-ratelimit-limit-" + what, b"x-ratelimit-remaining-" + what, b"x-ratelimit-reset-" + what


_REQUESTS: Final = _names(b"requests")
_TOKENS: Final = _names(b"tokens")


@functools.lru_cache(maxsize=2048)
def _span(milliseconds: int) -> bytes:
    return span(milliseconds / 1000).encode()


def span(seconds: float) -> str:
    """A time as OpenAI writes it: ``120ms``, ``1s``, ``6m0s``, ``2h0m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
