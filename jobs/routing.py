"""Which nodes should serve a job, best first. Pure: no clock, no database, no Redis.

Only nodes that are alive and have the model ready are ranked; where there is none, one that can load it is
asked to. The score is a product:

    free      share of the slots that are free, corrected by the engine's own word on its KV cache: vLLM
              takes its memory at start, so "free VRAM" of a loaded model means free KV cache
    latency   best TTFT among the candidates / this one's TTFT, softened by a square root
    weight    how capable the node is next to the others (1 where nothing is known)

The board has the last word: it takes the first of the order that really has a free slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

from worker_agent.contract import ModelState

UNKNOWN_TTFT_MS = 0.0


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
    max_model_len: int = 0
    fits: bool = True
    need: int = 0  # bytes
    memory_free: int = 0  # bytes of the node's budget that no engine has
    reason: str = ""
    breaker: str = ""  # "open" or "half_open"; empty when closed


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its score and the factors it is made of, for the record and for people."""

    node: str
    score: float
    free: float
    latency: float
    weight: float

    def __str__(self) -> str:
        return (
            f"score {self.score:.3f} = free {self.free:.2f} x latency {self.latency:.2f}"
            f" x weight {self.weight:.2f}"
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
    """Try these, in this order; wait if none has a free slot."""

    order: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """No node has the model: ask this one to load it, and wait."""

    node: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No node is ready, but one is on its way (`reason` says what it does)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    why: Why
    detail: str = ""


def choose(candidates: Sequence[Candidate], tried: Collection[str] = ()) -> Place | Load | Wait | Refuse:
    """Decide on a job. `tried` are nodes where an attempt at it has failed.

    Ties are broken by the fewest requests in flight, then by node id, so equal input gives equal output.
    """
    if not candidates:
        return Refuse(Why.UNKNOWN_MODEL)
    alive = [c for c in candidates if c.takes_work]
    ready = [c for c in alive if c.state == ModelState.READY]
    fresh = [c for c in ready if c.node not in tried]
    if fresh:
        # The board lets nobody past an open breaker, unless there is no other place: then all are offered.
        return Place(tuple(rank([c for c in fresh if c.breaker != "open"] or fresh)))
    others = [c for c in alive if c.node not in tried and c.state != ModelState.READY]
    for c in others:
        if c.state in {ModelState.LOADING, ModelState.DOWNLOADING}:
            return Wait(f"model is {c.state.value}")
    loadable = [c for c in others if c.fits and c.state in _LOADABLE]
    if loadable:
        return Load(min(loadable, key=_load_cost).node)
    if ready:
        return Refuse(Why.ALL_TRIED)
    return _refusal(others)


_LOADABLE = {ModelState.SLEEPING, ModelState.OFFERED, ModelState.UNLOADING}


def _load_cost(c: Candidate) -> tuple[bool, bool, float, str]:
    """Waking beats loading, room beats pushing another model out, more room beats less."""
    return (c.state != ModelState.SLEEPING, c.need > c.memory_free, -c.memory_free * c.weight, c.node)


def _refusal(alive: Sequence[Candidate]) -> Refuse:
    if alive and all(not c.fits for c in alive):
        return Refuse(Why.NEVER_FITS, alive[0].reason)
    failed = [c for c in alive if c.state == ModelState.FAILED]
    return Refuse(Why.LOAD_FAILED, failed[0].reason) if failed else Refuse(Why.NO_WORKERS)


def rank(candidates: Iterable[Candidate]) -> list[Scored]:
    """Score and sort, best first."""
    candidates = list(candidates)
    measured = [c.ttft_ms for c in candidates if c.ttft_ms > 0]
    best_ttft = min(measured, default=0.0)
    keyed = []
    for c in candidates:
        free = max(0.0, 1.0 - c.in_flight / c.slots) if c.slots else 0.0
        # A full KV cache preempts and recomputes however many slots are free; an empty one says nothing.
        free = min(free, 1.0 - c.kv_cache_usage) if c.kv_cache_usage > 0.5 else free
        latency = sqrt(best_ttft / c.ttft_ms) if c.ttft_ms > 0 else 1.0
        scored = Scored(c.node, free * latency * c.weight, free, latency, c.weight)
        keyed.append(((-scored.score, c.in_flight, c.node), scored))
    keyed.sort(key=lambda pair: pair[0])
    return [scored for _, scored in keyed]
