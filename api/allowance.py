"""What a web process may admit of a key's requests by itself, because Redis has counted it in advance.

A key that asks often and is far from all of its limits need not be weighed in Redis each time: one admission
brings along an allowance of requests, tokens and requests at once. It is counted in the second of Redis's
clock in which it was given, and used in no other, so the limits hold as exactly as they do one by one. When
that second is over the rest is given back. What is refused elsewhere meanwhile, because of the rest, is at
most an eighth of what was left then. See `api/limits.lua` for the other side, and for who gets one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SLICE_SECONDS = 1.0
_OFTEN = 8
"""Requests in a slice from which on an allowance is worth asking for: each costs about as much as two
requests do."""
_MORE = 1.25
"""How many more requests than in the slice before are provided for."""
_MOST = 100_000


@dataclass(slots=True)
class Allowance:
    """One, for as long as anything is left of it: first open, then closed, until the last of its requests is
    over. Times are those of `time.monotonic`: a loop's clock stands still within a turn."""

    key: int
    name: str
    until: float
    requests: int
    tokens: int
    slots: int
    """Requests at once. These three: what is left to be taken."""
    told: tuple[int, int, int, int]
    """As Redis answered: requests and tokens left of the limits beside this, and ms until these are whole."""
    at: float
    """When it was asked for."""
    closed: bool = False
    under_way: int = 0
    reserved: int = 0
    """Requests under way, and tokens reserved for these."""
    sent: tuple[Any, ...] | None = None
    """The account under way, until it was heard."""
    _accounts: int = 0
    _news: bool = False  # since the last account
    _requests_back: int = 0
    _tokens_back: int = 0
    _spent: dict[str, int] = field(default_factory=dict)

    def take(self, tokens: int, now: float) -> bool:
        """Admit a request that reserves so many tokens. False: ask Redis."""
        if self.closed or now >= self.until or self.requests < 1 or self.slots < 1 or self.tokens < tokens:
            return False
        self.requests -= 1
        self.slots -= 1
        self.tokens -= tokens
        self.under_way += 1
        self.reserved += tokens
        return True

    def over(self, reserved: int, tokens: int, *, served: bool, periods: tuple[str, str]) -> None:
        """A request is over that reserved so many tokens and took so many: the others, its place, and where
        it was not served the request itself, may be taken anew while this is open."""
        self.under_way -= 1
        self.reserved -= reserved
        self._news = True
        if tokens:
            for period in periods:
                self._spent[period] = self._spent.get(period, 0) + tokens
        if self.closed:
            self._tokens_back += reserved - tokens
            self._requests_back += not served
        else:
            self.slots += 1
            self.tokens += reserved - tokens
            self.requests += not served

    def close(self) -> None:
        """Nothing is taken any more, and the rest is given back. Safe to repeat."""
        self.closed = self._news = True
        self._requests_back += self.requests
        self._tokens_back += self.tokens
        self.requests = self.tokens = self.slots = 0

    def account(self) -> tuple[Any, ...] | None:
        """What Redis has to be told next of one that is closed, as a step of `limits.lua`; None if nothing,
        or the last one has not been heard. It stays under `sent`, to be said again, until `heard`."""
        if not self.closed or self.sent is not None or not self._news:
            return None
        self._accounts += 1
        kept, back = (self.under_way, self.reserved), (self._requests_back, self._tokens_back)
        spent = [each for period in self._spent.items() for each in period]
        self.sent = ("account", self.key, self.name, self._accounts, *kept, *back, *spent)
        self._news, self._requests_back, self._tokens_back, self._spent = False, 0, 0, {}
        return self.sent

    def heard(self) -> None:
        """The account has been heard."""
        self.sent = None

    @staticmethod
    def unused(key: int, name: str) -> tuple[Any, ...]:
        """The account of one that may have been given, by an answer that was lost: all of it goes back."""
        return "account", key, name, 1, 0, 0, -1, 0

    def left(self, now: float) -> tuple[int, int, int, int]:
        """As `told`, by now."""
        requests, tokens, until_requests, until_tokens = self.told
        passed = int((now - self.at) * 1000)
        return (
            requests + self.requests,
            tokens + self.tokens,
            until_requests - passed if until_requests > passed else 0,
            until_tokens - passed if until_tokens > passed else 0,
        )


@dataclass(slots=True)
class Pace:
    """How often a key asks, and with how many requests at once: what an allowance should have."""

    under_way: int = 0
    _most: int = 0
    _count: int = 0
    _before: int = 0
    _until: float = 0.0

    def begun(self, now: float) -> None:
        """One more, by `time.monotonic`."""
        if now >= self._until:
            fresh = now < self._until + _SLICE_SECONDS  # else nothing came for longer than a slice
            self._before = self._count if fresh else 0
            self._count, self._until, self._most = 0, now + _SLICE_SECONDS, self.under_way
        self._count += 1
        self.under_way += 1
        self._most = max(self._most, self.under_way)

    def ended(self) -> None:
        self.under_way -= 1

    def wants(self) -> tuple[int, int] | None:
        """How many requests, and how many at once, to ask for. None: it asks too seldom."""
        often = max(self._count, self._before)
        if often < _OFTEN:
            return None
        return min(_MOST, int(_MORE * often)), min(_MOST, 2 * self._most)
