"""What one web process keeps of its routing decisions from one look at the nodes to the next.

Requests of a kind (their model, the nodes they may not go to, the contexts they fit in) meet the same nodes
until the next look; between two of them only loads and turns have changed, of few nodes. So a kind's
`Standing` is made by its first request, and each request after that brings it up to date. The whole costs a
request about as much with a thousand nodes as with ten, where `routing.choose` would cost 15 us a node.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from jobs import routing
from jobs.routing import Able, Decision, Load, Place, Refuse, Wait
from jobs.scoring import Candidate, Scored
from jobs.spreading import Turns
from jobs.standing import Alone, Standing

FEW: Final = 8
"""How many nodes the board is asked to try first."""

_MOST_KINDS: Final = 256
_MOST_TOUCHED: Final = 10_000

_NOWHERE: Final[frozenset[str]] = frozenset()

Kind = tuple[str, frozenset[str] | None, frozenset[str], int]
"""Model, nodes that may see it, nodes where it failed, and how many lengths of context are too small."""


class _Kept:
    """A kind's order. `seen`: how many of the touches of its model are in it."""

    __slots__ = ("barred", "seen", "standing")

    def __init__(self, able: Able, turns: Turns, seen: int) -> None:
        self.barred, self.seen, able_ones = able.barred, seen, able.candidates
        self.standing = Alone(able_ones[0]) if len(able_ones) == 1 else Standing(able_ones, turns)


class Standings:
    """Forgets everything with `clear`: when the nodes, their leases or their breakers may have changed.

    `candidates` of a model and of these nodes (None: all), as they are now; `contexts`: what lengths of
    context the nodes have for a model.
    """

    def __init__(
        self,
        candidates: Callable[[str, frozenset[str] | None], Sequence[Candidate]],
        contexts: Callable[[str], Iterable[int]],
    ) -> None:
        self._candidates, self._lengths = candidates, contexts
        self._kept: dict[Kind, _Kept | Load | Wait | Refuse] = {}
        self._touched: dict[str, list[str]] = {}
        self._contexts: dict[str, list[int]] = {}

    def clear(self) -> None:
        self._kept.clear()
        self._touched.clear()
        self._contexts.clear()

    def touch(self, model: str, node: str) -> None:
        """A node's load, or its turn, has changed."""
        touched = self._touched.get(model)
        if touched is not None:  # else nobody has asked yet
            touched.append(node)

    def contexts(self, model: str) -> list[int]:
        """The lengths of context that there are for a model, in order."""
        if (contexts := self._contexts.get(model)) is None:
            contexts = self._contexts[model] = sorted(set(self._lengths(model)))
        return contexts

    def decide(
        self,
        model: str,
        in_flight: Mapping[str, int],
        hints: routing.Hints,
        only: frozenset[str] | None = None,
        tried: Collection[str] = (),
    ) -> Decision:
        """As `routing.choose` would, with the best few of the order, and the others if they are asked for.
        `in_flight` by ``node/model``."""
        touched = self._touched.get(model)
        if touched is not None and len(touched) > _MOST_TOUCHED:  # Redis is away: nothing is cleared any more
            self.clear()
            touched = None
        if touched is None:
            touched = self._touched[model] = []
        contexts = self.contexts(model)
        kind = model, only, frozenset(tried) if tried else _NOWHERE, bisect_left(contexts, hints.tokens)
        kept = self._kept.get(kind)
        if kept is None:
            if len(self._kept) >= _MOST_KINDS:
                self._kept.clear()
            found = routing.consider(self._candidates(model, only), tried, hints.tokens)
            kept = _Kept(found, hints.turns, len(touched)) if isinstance(found, Able) else found
            self._kept[kind] = kept
        if not isinstance(kept, _Kept):
            return kept
        standing = kept.standing
        if kept.seen < len(touched):
            news = {*touched[kept.seen :]}
            kept.seen = len(touched)
            standing.note(news, lambda node: in_flight.get(f"{node}/{model}", 0), hints.turns)
        order = tuple(standing.first(FEW, hints.prefers))
        if len(standing) <= FEW:
            return Place(order, kept.barred)
        return Place(order, kept.barred, partial(_others, standing, order))


def _others(standing: Standing | Alone, order: Sequence[Scored]) -> list[Scored]:
    """As they stand when they are asked for."""
    asked = {scored.node for scored in order}
    return [scored for scored in standing.first(len(standing)) if scored.node not in asked]
