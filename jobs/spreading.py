"""Whose turn it is among nodes that are about equally good: smooth, and by weight.

Stride scheduling (Waldspurger and Weihl, MIT/LCS/TM-528, 1995): each request given to a node moves that
node's virtual time on by 1/weight, and the node furthest behind is next. As in start-time fair queueing, a
node that was away starts at the present virtual time, so it neither owes nor is owed anything.

`Turns` is what the pure `jobs.routing` reads; `Spreading` is one web process's memory of it. Processes do
not tell each other: each spreads its own part evenly, and so the whole is spread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log
from types import MappingProxyType
from typing import Final, Protocol

from msgspec import Struct, field

LEAD: Final = 4.0
"""Turns a node may be ahead: what comes to it out of turn (for a prompt it knows) counts, not for ever."""

_MODELS = 1024
_NODES = 4096


class Turns(Struct, frozen=True):
    """The present virtual time, and for each node when its next turn begins."""

    clock: float = 0.0
    ends: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def start(self, node: str) -> float:
        """When the node's next turn begins; the least is next."""
        return max(self.clock, self.ends.get(node, self.clock))


class Weighted(Protocol):
    """What is needed of `jobs.scoring.Candidate`."""

    @property
    def node(self) -> str: ...
    @property
    def weight(self) -> float: ...


class Ranked(Weighted, Protocol):
    """What is needed of `jobs.scoring.Scored`."""

    @property
    def in_turn(self) -> bool: ...


class Turn:
    """One request's place among the turns, noted when the choice is made, so that those that come before the
    board has answered choose others; `settle` makes it true."""

    __slots__ = ("_model", "_order", "_spreading")

    def __init__(self, spreading: Spreading, model: str, order: Sequence[Ranked]) -> None:
        self._spreading, self._model, self._order = spreading, model, order

    def settle(self, taken: Ranked | None) -> None:
        """The board took this one, or none."""
        if not self._order:
            return
        first = self._order[0]
        if first is taken or (taken is not None and first.node == taken.node):
            return
        self._spreading.give_back(self._model, first)
        if taken is not None:
            self._spreading.charge(self._model, taken, self._order)


class Spreading:
    """The turns of every model, in the memory of one process; bounded. `moved` hears of each model and node
    whose turn is another now."""

    def __init__(self, moved: Callable[[str, str], None] = lambda model, node: None) -> None:
        self._moved = moved
        self._clock: dict[str, float] = {}
        self._ends: dict[str, dict[str, float]] = {}

    def turns(self, model: str) -> Turns:
        """As they stand; a view, good until the next request."""
        return Turns(self._clock.get(model, 0.0), self._ends.get(model, _NOTHING))

    def take(self, model: str, order: Sequence[Ranked]) -> Turn:
        """Note that a request goes to the first of `order`, unless `Turn.settle` says otherwise."""
        if order:
            self.charge(model, order[0], order)
        return Turn(self, model, order)

    def charge(self, model: str, used: Ranked, order: Sequence[Ranked]) -> None:
        """Move `used` on by one turn. `order`, best first, may leave out who comes later."""
        if model not in self._ends and len(self._ends) >= _MODELS:
            oldest = next(iter(self._ends))
            del self._ends[oldest], self._clock[oldest]
        if (ends := self._ends.get(model)) is None:
            ends = self._ends[model] = {}
        before = self._clock.get(model, 0.0)
        clock = self._clock[model] = _earliest(ends, before, order)
        node, step = used.node, 1.0 / used.weight
        # Taken out, so that the first of the dict is the one that was used longest ago.
        start = ends.pop(node, before)
        end, latest = (start if start > before else before) + step, clock + LEAD * step
        ends[node] = end if end < latest else latest
        if len(ends) > _NODES:
            del ends[next(iter(ends))]
        self._moved(model, node)

    def give_back(self, model: str, unused: Ranked) -> None:
        """A turn that was noted, but not taken."""
        ends = self._ends.get(model, {})
        if unused.node in ends:
            ends[unused.node] -= 1.0 / unused.weight
            self._moved(model, unused.node)


def _earliest(ends: Mapping[str, float], clock: float, order: Iterable[Ranked]) -> float:
    """When the next turn of these begins: time moves on with those who take turns, and a node used out of
    turn gets ahead of it."""
    found = None
    for ranked in order:
        if ranked.in_turn:
            start = ends.get(ranked.node, clock)
            if start <= clock:
                return clock  # none begins earlier
            if found is None or start < found:
                found = start
    return clock if found is None else found


_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


def drawn(job: str, nodes: Iterable[Weighted]) -> Turns:
    """Turns drawn by lot for one job, for a process that remembers none: each node comes first with a chance
    in proportion to its weight (the least of exponential variates with the weights as rates), and a job
    that is asked about again draws the same."""
    return Turns(0.0, {n.node: -log(_unit(f"{job} {n.node}")) / n.weight for n in nodes})


def _unit(word: str) -> float:
    """In (0, 1], evenly, by a hash."""
    return (int.from_bytes(hashlib.blake2b(word.encode(), digest_size=6).digest()) + 1) / 2**48
