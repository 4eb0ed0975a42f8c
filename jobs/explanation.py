"""Why a request would go where it would: `jobs.routing` in words, for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import routing
from jobs.routing import Decision, Hints, Load, Place, Refuse, Wait
from jobs.scoring import Candidate, Scored
from worker_agent.contract import ModelState

_MATCH = {
    ModelState.READY: "loaded",
    ModelState.SLEEPING: "sleeping",
    ModelState.OFFERED: "loadable",
    ModelState.UNLOADING: "loadable",
    ModelState.LOADING: "coming",
    ModelState.DOWNLOADING: "coming",
    ModelState.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """One node. `rank` counts from 1, 0 if it is not in the order; `share` of requests it gets while things
    stay as they are; `why_not` says what keeps it from being asked."""

    candidate: Candidate
    rank: int
    scored: Scored | None
    share: float
    why_not: str

    @property
    def match(self) -> str:
        """How near the model is: loaded beats sleeping beats loadable."""
        return _MATCH[self.candidate.state]


def explain(candidates: Sequence[Candidate], hints: Hints) -> tuple[Decision, list[Explained]]:
    """The decision on a request with no attempt behind it, and every node's part in it, best first."""
    decision = routing.choose(candidates, (), hints)
    order = decision.order if isinstance(decision, Place) else ()
    takers = sum(s.weight for s in order if s.in_turn)
    by_node = {c.node: c for c in candidates}
    rows = [
        Explained(by_node[s.node], n, s, s.weight / takers if s.in_turn else 0.0, _note(s))
        for n, s in enumerate(order, 1)
    ]
    asked = {s.node for s in order}
    rest = [c for c in candidates if c.node not in asked]
    rest.sort(key=lambda c: (not c.takes_work, list(_MATCH).index(c.state), c.node))
    return decision, rows + [Explained(c, 0, None, 0.0, _why_not(c, decision, hints)) for c in rest]


def _note(scored: Scored) -> str:
    if scored.free <= 0:
        return "full: only waiting jobs"
    return "" if scored.in_turn else "busier or slower: only when the others are full"


def _why_not(c: Candidate, decision: Decision, hints: Hints) -> str:
    if not c.takes_work:
        return "takes no work"
    if not isinstance(decision, Refuse) and c.node in decision.barred:
        return f"context {c.max_model_len} is less than {hints.tokens}"
    if isinstance(decision, Load) and decision.node == c.node:
        return "would be asked to load it"
    if not c.fits or c.state == ModelState.FAILED:
        return c.reason or "cannot be loaded"
    if c.breaker == "open" and c.state == ModelState.READY:
        return "its breaker is open: too many faults"
    if c.state != ModelState.READY:
        return f"{c.state.value}; others have it loaded" if isinstance(decision, Place) else c.state.value
    return ""


def in_words(decision: Decision) -> str:
    """What would become of a request."""
    if isinstance(decision, Place):
        turns = sum(s.in_turn for s in decision.order)
        return "placed at once" + (f"; {turns} nodes take turns" if turns > 1 else "")
    if isinstance(decision, Load):
        return "waits for a node to load the model"
    if isinstance(decision, Wait):
        return f"waits: {decision.reason}"
    return f"refused: {decision.why}" + (f" ({decision.detail})" if decision.detail else "")
