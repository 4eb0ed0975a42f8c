"""Which nodes should serve a job, best first. Pure: no clock, no database, no Redis.

Only nodes that are alive and have the model loaded are ranked; where there is none, one that can load it is
asked to (waking beats loading, see `Load`). The score is a product:

    free      share of the slots that are free, corrected by the engine's own word on its KV cache: vLLM
              takes its memory at start, so "free VRAM" of a loaded model means free KV cache
    latency   best TTFT among the candidates next to this one's, softened (`scoring.latency`)
    weight    how capable the node is next to the others (`nodes.capability`)

The score alone would send everything to the largest node until it is half full. So those that are about as
free and as quick as the best of them, whatever their weight (`Best.near`), take turns by weight
(`jobs.spreading`); the others follow by score. A node that has seen the beginning of this prompt comes
before all of them unless it is much busier (`jobs.affinity`).

The board has the last word: it takes the first of the order that really has a free slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct

from jobs.scoring import Candidate, Scored
from jobs.spreading import Turns
from jobs.standing import Standing
from worker_agent.contract import ModelState


class Hints(Struct, frozen=True):
    """What is known of one request. `tokens` of context it needs at least, 0 if unknown; `turns` of the
    nodes that serve its model; `prefers` the node that has seen the beginning of its prompt, if any."""

    tokens: int = 0
    turns: Turns = Turns()
    prefers: str = ""


class Why(StrEnum):
    """Why no node can serve a job as things stand."""

    UNKNOWN_MODEL = "unknown_model"
    NO_WORKERS = "no_workers"
    ALL_TRIED = "all_tried"
    NEVER_FITS = "never_fits"
    LOAD_FAILED = "load_failed"


class Place(Struct, frozen=True):
    """Try these, in this order; wait if none has a free slot, but for none of the `barred`.

    `others` tells those that come after them, where `order` has only the best few: a thousand nodes are not
    worth listing for a request that one of the first will take.
    """

    order: tuple[Scored, ...]
    barred: frozenset[str] = frozenset()
    others: Callable[[], Sequence[Scored]] | None = None

    def __eq__(self, other: object) -> bool:
        """`others` is only a way to ask."""
        if not isinstance(other, Place):
            return NotImplemented
        return self.order == other.order and self.barred == other.barred

    def __hash__(self) -> int:
        return hash((self.order, self.barred))

    @property
    def later(self) -> Callable[[], Sequence[str]] | None:
        """The names of the others, once somebody asks; None if the order is all there is."""
        others = self.others
        return (lambda: [s.node for s in others()]) if others else None

    def scored(self, node: str) -> Scored | None:
        """The node that the board took, if it is one of these."""
        for scored in self.order:
            if scored.node == node:
                return scored
        if node and self.others:
            for scored in self.others():
                if scored.node == node:
                    return scored
        return None


NOWHERE: Final = Place(())


@dataclass(frozen=True, slots=True)
class Load:
    """No node has the model: ask this one to load it, and wait."""

    node: str
    barred: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Wait:
    """No node is ready, but one is on its way (`reason` says what it does)."""

    reason: str
    barred: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refuse:
    why: Why
    detail: str = ""


Decision = Place | Load | Wait | Refuse
NO_HINTS: Final = Hints()


@dataclass(frozen=True, slots=True)
class Able:
    """Those that may take a job now, in no order. What they are hangs on the job only by the nodes it may
    not go to and by how its context compares with the nodes'."""

    candidates: Sequence[Candidate]
    barred: frozenset[str] = frozenset()


def choose(candidates: Sequence[Candidate], tried: Collection[str] = (), hints: Hints = NO_HINTS) -> Decision:
    """Decide on a job. `tried` are nodes where an attempt at it has failed.

    Ties are broken by the score, the fewest requests in flight, then by node id, so equal input gives equal
    output.
    """
    able = consider(candidates, tried, hints.tokens)
    return Place(tuple(rank(able.candidates, hints)), able.barred) if isinstance(able, Able) else able


def consider(
    candidates: Sequence[Candidate], tried: Collection[str] = (), tokens: int = 0
) -> Able | Load | Wait | Refuse:
    """The part of `choose` that is the same for all requests of a kind, until the next snapshot."""
    if not candidates:
        return Refuse(Why.UNKNOWN_MODEL)
    online = [c for c in candidates if c.takes_work]
    alive = long_enough(online, tokens)
    barred = frozenset(c.node for c in online) - {c.node for c in alive}
    ready = [c for c in alive if c.state == ModelState.READY]
    fresh = [c for c in ready if c.node not in tried]
    if fresh:
        # The board lets nobody past an open breaker, unless there is no other place: then all are offered.
        sound = [c for c in fresh if c.breaker != "open"] or fresh
        return Able(sound, barred)
    others = [c for c in alive if c.node not in tried and c.state != ModelState.READY]
    for c in others:
        if c.state in _COMING:
            return Wait(f"model is {c.state.value}", barred)
    loadable = [c for c in others if c.fits and c.state in _LOADABLE]
    if loadable:
        return Load(min(loadable, key=_load_cost).node, barred)
    if ready:
        return Refuse(Why.ALL_TRIED)
    return _refusal(others)


_COMING = {ModelState.LOADING, ModelState.DOWNLOADING}
_LOADABLE = {ModelState.SLEEPING, ModelState.OFFERED, ModelState.UNLOADING}


def long_enough(alive: Sequence[Candidate], tokens: int) -> Sequence[Candidate]:
    """The candidates whose context holds `tokens`, as far as their contexts are known.

    A context is worth waiting for while its model is loaded, since every smaller one would only refuse; but
    nothing is loaded to find out whether its context is large enough. Where no context is known to be, the
    request goes to the largest loaded one, whose engine says exactly how much too long it is.
    """
    if not any(0 < c.max_model_len < tokens for c in alive):
        return alive
    holds = [c for c in alive if not 0 < c.max_model_len < tokens]
    if sure := [c for c in holds if c.state == ModelState.READY or (c.max_model_len and _may_come(c))]:
        return sure
    if ready := [c for c in alive if c.state == ModelState.READY]:
        most = max(c.max_model_len for c in ready)
        return [c for c in ready if c.max_model_len == most]
    return holds if any(map(_may_come, holds)) else alive


def _may_come(c: Candidate) -> bool:
    return c.state in _COMING or (c.fits and c.state in _LOADABLE)


def _load_cost(c: Candidate) -> tuple[bool, bool, float, str]:
    """Waking beats loading, room beats pushing another model out, more room beats less."""
    return (c.state != ModelState.SLEEPING, c.need > c.memory_free, -c.memory_free * c.weight, c.node)


def _refusal(alive: Sequence[Candidate]) -> Refuse:
    if alive and all(not c.fits for c in alive):
        return Refuse(Why.NEVER_FITS, alive[0].reason)
    failed = [c for c in alive if c.state == ModelState.FAILED]
    return Refuse(Why.LOAD_FAILED, failed[0].reason) if failed else Refuse(Why.NO_WORKERS)


def rank(candidates: Iterable[Candidate], hints: Hints = NO_HINTS) -> list[Scored]:
    """Score and sort, best first: the node that knows the prompt, those that take turns, then the others."""
    standing = Standing(candidates, hints.turns)
    return standing.first(len(standing), hints.prefers)
