"""Requests that bring engines down. Each engine that dies with one is a strike on its fingerprint; with three
it is held off for a while, however often it is sent. A success clears the strikes: it was only a bystander.

The strikes are in Redis (`breaker.lua`), and each web process reads them with its look at the nodes. While
there are none, a request costs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Final

from gputorrent.chosen import settings
from jobs.errors import HeldOff
from worker_agent.contract import Done, Failed, Outcome

STRIKES: Final = 3


@dataclass(frozen=True, slots=True)
class Strikes:
    """How many engines a request has brought down, and until when that counts (monotonic seconds)."""

    count: int
    until: float


def fingerprint(tenant: str, model: str, body: bytes) -> str:
    """The same for the same request of the same key, and nothing to anybody without our secret."""
    h = blake2b(digest_size=16, key=settings.SECRET_KEY.encode()[:64])
    for part in (tenant.encode(), model.encode(), body):
        h.update(len(part).to_bytes(8, "big"))
        h.update(part)
    return h.hexdigest()


def is_strike(reply: Done | Failed | None) -> bool:
    """Whether an attempt ended with the engine's death."""
    return isinstance(reply, Failed) and reply.outcome == Outcome.ENGINE_DIED


def check(strikes: Mapping[str, Strikes], tenant: str, model: str, body: bytes, now: float) -> None:
    """Raises `HeldOff` for a request that has had its strikes. `now` in monotonic seconds."""
    if not strikes:
        return
    known = strikes.get(fingerprint(tenant, model, body))
    if known and known.count >= STRIKES and known.until > now:
        left = ceil(known.until - now)
        raise HeldOff(
            f"{known.count} engines died while they worked on this request: it is held off for {left} s more",
            retry_after=float(left),
        )
