"""What happened lately, in words: to nodes, breakers, jobs and keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dashboard.state import Event, Level
from gputorrent.redis import Pipe, Script
from jobs.breaker import Breaker
from nodes.models import NodeState

LUA: Final = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")
MOST: Final = 30
"""So many events are shown."""


class BreakerTold(Struct, frozen=True):
    at: float
    place: str
    opening: int  # 0: it has closed


async def note_breakers(pipe: Pipe, breakers: Iterable[Breaker]) -> list[BreakerTold]:
    """Compare the breakers that are not closed with those that were, and note what changed. Returns the last
    changes, newest first. Raises `redis.RedisError`."""
    flat = [word for b in breakers for word in (b.place, b.opening)]
    return [msgspec.json.decode(told, type=BreakerTold) for told in await Script(pipe, LUA)(*flat)]


_NOW: Final = {
    NodeState.PENDING: ("waits for approval", Level.WARN),
    NodeState.ONLINE: ("is online", Level.FINE),
    NodeState.DRAINING: ("finishes its work and takes nothing new", Level.NOTE),
    NodeState.UNHEALTHY: ("does not answer", Level.BAD),
    NodeState.GONE: ("has left", Level.NOTE),
    NodeState.REVOKED: ("was revoked", Level.WARN),
}


def of_node(at: float, node: str, name: str, was: str, now: str, reason: str) -> Event:
    """A row of the node's history."""
    if was == now or now not in _NOW:
        return Event(at, Level.NOTE, name, reason, "node", node)
    words, level = _NOW[NodeState(now)]
    return Event(at, level, name, f"{words}: {reason}" if reason else words, "node", node)


def of_breaker(told: BreakerTold, names: Mapping[str, str]) -> Event:
    """A breaker that opened or closed; `names` has the nodes' names by id."""
    node, _, model = told.place.partition("/")
    name = names.get(node, node)
    if not told.opening:
        return Event(told.at, Level.FINE, name, f"works again with {model}: its breaker closed", "node", node)
    again = " again" if told.opening > 1 else ""
    text = f"had too many faults with {model}: its breaker opened{again}"
    return Event(told.at, Level.WARN, name, text, "node", node)


def of_job(at: float, job: str, model: str, code: str) -> Event:
    """A job that failed."""
    return Event(
        at, Level.WARN, f"job …{job[-8:]}", f"for {model} failed: {code or 'no reason given'}", "job", job
    )


def of_key(at: float, key: int, name: str) -> Event:
    """A key that was revoked."""
    return Event(at, Level.NOTE, f"key {name}", "was revoked", "key", str(key))


def merged(events: Iterable[Event]) -> list[Event]:
    """The newest first, as many as are shown."""
    return sorted(events, key=lambda e: -e.at)[:MOST]
