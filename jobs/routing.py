"""Which nodes should serve a job, best first. Pure: no clock, no database, no Redis.

Only nodes that are alive and have the model loaded are ranked; where there is none, one that can load it is
asked to (waking beats loading, see `Load`). The score is a product:

    free      share of the slots that are free, corrected by the engine's own word on its KV cache: vLLM
              takes its memory at start, so "free VRAM" of a loaded model means free KV cache
    latency   best TTFT among the candidates next to this one's, softened (`_latency`)
    weight    how capable the node is next to the others (`nodes.capability`)

The score alone would send everything to the largest node until it is half full. So those that are about as
free and as quick as the best of them, whatever their weight (`_near`), take turns by weight
(`jobs.spreading`); the others follow by score. A node that has seen the beginning of this prompt comes
before all of them unless it is much busier (`jobs.affinity`).

The board has the last word: it takes the first of the order that really has a free slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt
from operator import itemgetter
from typing import Final

from jobs.spreading import Turns
from worker_agent.contract import ModelState

UNKNOWN_TTFT_MS = 0.0

SMOOTH_TTFT_MS: Final = 50.0
"""Added to both times to first token: between 5 and 10 ms nobody sees a difference, and a mean over one
heartbeat moves by that much by itself."""

NEAR: Final = 0.75
"""Nodes whose free capacity and latency are together at least this share of the best one's take turns."""

SPARE: Final = 0.25
"""A node with this share of its slots free has room to carry its weight's share of the load."""

KEEPS_PREFIX: Final = 0.5
"""A node that knows the prompt's beginning is worth going back to while it is at least half as free and
quick as the best one: after that, waiting in its batch costs more than reading the prompt again."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one node, as the snapshot shows it."""

    node: str
    state: ModelState
    takes_work: bool  # online, and its lease is alive
    slots: int
    in_flight: int
    kv_cache_usage: float = 0.0
    ttft_ms: float = UNKNOWN_TTFT_MS
    weight: float = 1.0
    weight_from: str = ""
    max_model_len: int = 0
    fits: bool = True
    need: int = 0  # bytes
    memory_free: int = 0  # bytes of the node's budget that no engine has
    reason: str = ""
    breaker: str = ""  # "open" or "half_open"; empty when closed


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of one request. `tokens` of context it needs at least, 0 if unknown; `turns` of the
    nodes that serve its model; `prefers` the node that has seen the beginning of its prompt, if any."""

    tokens: int = 0
    turns: Turns = field(default_factory=Turns)
    prefers: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its score and the factors it is made of, for the record and for people."""

    node: str
    score: float
    free: float
    latency: float
    weight: float
    weight_from: str = ""
    in_turn: bool = False  # one of the near-equals that take turns
    by_prefix: bool = False  # first because it has seen the beginning of the prompt

    def __str__(self) -> str:
        return (
            f"score {self.score:.3f} = loaded x free {self.free:.2f} x latency {self.latency:.2f}"
            f" x weight {self.weight:.2f}"
            f"{f' ({self.weight_from})' if self.weight_from else ''}"
            f"{', prefix' if self.by_prefix else ', in turn' if self.in_turn else ''}"
        )


class Why(StrEnum):
    """Why no node can serve a job as things stand."""

    UNKNOWN_MODEL = "unknown_model"
    NO_WORKERS = "no_workers"
    ALL_TRIED = "all_tried"
    NEVER_FITS = "never_fits"
    LOAD_FAILED = "load_failed"


@dataclass(frozen=True, slots=True)
class Place:
    """Try these, in this order; wait if none has a free slot, but for none of the `barred`."""

    order: tuple[Scored, ...]
    barred: frozenset[str] = frozenset()


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


def choose(candidates: Sequence[Candidate], tried: Collection[str] = (), hints: Hints = NO_HINTS) -> Decision:
    """Decide on a job. `tried` are nodes where an attempt at it has failed.

    Ties are broken by the score, the fewest requests in flight, then by node id, so equal input gives equal
    output.
    """
    if not candidates:
        return Refuse(Why.UNKNOWN_MODEL)
    online = [c for c in candidates if c.takes_work]
    alive = long_enough(online, hints.tokens)
    barred = frozenset(c.node for c in online) - {c.node for c in alive}
    ready = [c for c in alive if c.state == ModelState.READY]
    fresh = [c for c in ready if c.node not in tried]
    if fresh:
        # The board lets nobody past an open breaker, unless there is no other place: then all are offered.
        sound = [c for c in fresh if c.breaker != "open"] or fresh
        return Place(tuple(rank(sound, hints)), barred)
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
    found = list(candidates)
    if not found:
        return []
    best_ttft = min((c.ttft_ms for c in found if c.ttft_ms > 0), default=0.0)
    parts = [(c, _free(c), _latency(best_ttft, c.ttft_ms)) for c in found]
    best = max(parts, key=lambda part: (part[1] * part[2], -_load(part[0])))
    keyed: list[tuple[tuple[int, float, float, int, str], Scored]] = []
    for c, free, latency in parts:
        by_prefix = c.node == hints.prefers and _keeps(c, free * latency, best[1] * best[2])
        in_turn = _near(c, free, latency, best)
        score = free * latency * c.weight
        scored = Scored(c.node, score, free, latency, c.weight, c.weight_from, in_turn, by_prefix)
        tier, turn = (1, hints.turns.start(c.node)) if in_turn else (2, 0.0)
        keyed.append(((0 if by_prefix else tier, turn, -score, c.in_flight, c.node), scored))
    keyed.sort(key=_first)
    return [scored for _, scored in keyed]


_first = itemgetter(0)


def _free(c: Candidate) -> float:
    free = max(0.0, 1.0 - c.in_flight / c.slots) if c.slots else 0.0
    # A full KV cache preempts and recomputes however many slots are free; an empty one says nothing.
    return min(free, 1.0 - c.kv_cache_usage) if c.kv_cache_usage > 0.5 else free


def _latency(best_ms: float, ms: float) -> float:
    """The root, since a TTFT is mostly the lengths of the prompts that came by, not the node's doing. What
    is not measured is taken for fast."""
    return sqrt((best_ms + SMOOTH_TTFT_MS) / (ms + SMOOTH_TTFT_MS)) if ms > 0 else 1.0


def _load(c: Candidate) -> float:
    """Requests in flight for each unit of weight."""
    return c.in_flight / c.weight


def _near(c: Candidate, free: float, latency: float, best: tuple[Candidate, float, float]) -> bool:
    """Whether it is about as good for its size as the best one.

    A node of twice the weight is meant to carry twice the load, on no more slots perhaps: as long as it has
    room, its slots being fuller is no reason to leave it out, only carrying more than its share is.
    """
    best_candidate, best_free, best_latency = best
    if free <= 0:
        return best_free <= 0
    if free * latency >= NEAR * best_free * best_latency:
        return True
    has_room = free >= SPARE and latency >= NEAR * best_latency
    return has_room and _load(c) * NEAR <= _load(best_candidate)


def _keeps(c: Candidate, quality: float, best: float) -> bool:
    return c.in_flight < c.slots and quality >= KEEPS_PREFIX * best
