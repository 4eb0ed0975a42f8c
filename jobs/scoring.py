"""How good a node is for a model: candidates, their factors and their score. Pure. Why it is these factors
is said in `jobs.routing`.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

from msgspec import Struct

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


class Candidate(Struct, frozen=True, kw_only=True, gc=False):
    """One model on one node, as the snapshot shows it. A struct, since a thousand are made at a time."""

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


class Scored(Struct, frozen=True, gc=False):
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


def free_share(c: Candidate) -> float:
    """The share of its capacity that is free, 0 to 1."""
    slots = c.slots
    free = 1.0 - c.in_flight / slots if c.in_flight < slots else 0.0
    # A full KV cache preempts and recomputes however many slots are free; an empty one says nothing.
    return min(free, 1.0 - c.kv_cache_usage) if c.kv_cache_usage > 0.5 else free


def latency(best_ms: float, ms: float) -> float:
    """The root, since a TTFT is mostly the lengths of the prompts that came by, not the node's doing. What
    is not measured is taken for fast."""
    return sqrt((best_ms + SMOOTH_TTFT_MS) / (ms + SMOOTH_TTFT_MS)) if ms > 0 else 1.0


class Best(Struct, frozen=True, gc=False):
    """What the best of some candidates is like, whatever its weight: the one that is freest and quickest."""

    free: float
    latency: float
    load: float  # requests in flight for each unit of weight

    def near(self, c: Candidate, free: float, latency: float) -> bool:
        """Whether a candidate is about as good for its size.

        A node of twice the weight is meant to carry twice the load, on no more slots perhaps: as long as it
        has room, its slots being fuller is no reason to leave it out, only carrying more than its share is.
        """
        if free <= 0:
            return self.free <= 0
        if free * latency >= NEAR * self.free * self.latency:
            return True
        has_room = free >= SPARE and latency >= NEAR * self.latency
        return has_room and c.in_flight / c.weight * NEAR <= self.load

    def kept(self, c: Candidate, free: float, latency: float) -> bool:
        """Whether a candidate that knows the prompt's beginning comes first for that."""
        return c.in_flight < c.slots and free * latency >= KEEPS_PREFIX * (self.free * self.latency)
