"""The order of the nodes that may take a job, kept up while requests come and go.

Sorting a thousand nodes for each request would cost a millisecond or more; but one request changes only the
load of the node it goes to, and whose turn is next. So the candidates lie sorted, in the order that
`jobs.routing` describes, and a node that something happened to is taken out and put back (two binary
searches). Only what the best one is like, next to which the others are near or not, is found anew when a
quarter of the nodes has changed: with up to seven nodes, each time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec import structs

from jobs.scoring import Best, Candidate, Scored, free_share, latency
from jobs.spreading import Turns

RENEW: Final = 4
"""When one node in so many has changed, all are compared anew."""

EXACT: Final = 7
"""Up to so many nodes they are compared anew with every change: there one may make the difference."""

Row = tuple[Any, ...]
"""What it is sorted by, then the `Scored`; no two rows get as far, since they have a node before it."""


class Standing:
    """Candidates of one model, all of which may serve. Not pure: it follows what `note` tells."""

    def __init__(self, candidates: Iterable[Candidate], turns: Turns) -> None:
        self._candidates = {c.node: c for c in candidates}
        measured = [c.ttft_ms for c in self._candidates.values() if c.ttft_ms > 0]
        best = min(measured, default=0.0)
        self._quick = {c.node: latency(best, c.ttft_ms) for c in self._candidates.values()}
        self._compare(turns)

    def __len__(self) -> int:
        return len(self._candidates)

    def _compare(self, turns: Turns) -> None:
        """Find the best one, and sort all next to it."""
        self._changes = 0
        # Those whose turn it may be now, by score; those whose turn comes later, by that; and the others.
        self._due: list[Row] = []
        self._later: list[Row] = []
        self._others: list[Row] = []
        self._at: dict[str, tuple[list[Row], Row]] = {}
        if not self._candidates:
            return
        quick, free = self._quick, {}
        best: tuple[float, float, float, float] | None = None
        for node, c in self._candidates.items():
            f, q = free_share(c), quick[node]
            free[node] = f
            # Of equals the one that carries least for its weight.
            rank = f * q, -c.in_flight / c.weight, f, q
            if best is None or rank > best:
                best = rank
        assert best is not None
        self._best = Best(best[2], best[3], -best[1])
        for node, c in self._candidates.items():
            rows, row = self._row(c, free[node], turns)
            rows.append(row)
            self._at[node] = rows, row
        for rows in (self._due, self._later, self._others):
            if len(rows) > 1:
                rows.sort()

    def _row(self, c: Candidate, free: float, turns: Turns) -> tuple[list[Row], Row]:
        node, in_flight, weight = c.node, c.in_flight, c.weight
        quick = self._quick[node]
        in_turn = self._best.near(c, free, quick)
        score = free * quick * weight
        scored = Scored(node, score, free, quick, weight, c.weight_from, in_turn)
        if not in_turn:
            return self._others, (-score, in_flight, node, scored)
        if (start := turns.ends.get(node, 0.0)) > turns.clock:
            return self._later, (start, -score, in_flight, node, scored)
        return self._due, (-score, in_flight, node, scored)

    # -- what happens --------------------------------------------------------------------------------

    def note(self, nodes: Iterable[str], loads: Callable[[str], int], turns: Turns) -> None:
        """Something happened to these nodes: by `loads` they have so many requests in flight now, or another
        turn. `turns` as they stand after all of it."""
        known = self._candidates
        changed: list[str] = []
        for node in nodes:
            if (c := known.get(node)) is not None:
                changed.append(node)
                if c.in_flight != (in_flight := loads(node)):
                    known[node] = structs.replace(c, in_flight=in_flight)
                    self._changes += 1
        if self._changes * RENEW > len(known) or (self._changes and len(known) <= EXACT):
            self._compare(turns)
            return
        for node in changed:
            c = known[node]
            rows, row = self._at[node]
            del rows[bisect_left(rows, row)]
            rows, row = self._row(c, free_share(c), turns)
            insort(rows, row)
            self._at[node] = rows, row
        self._advance(turns.clock)

    def _advance(self, clock: float) -> None:
        """Those whose turn has come meanwhile are sorted by score, like the others whose turn it is."""
        if not self._later or self._later[0][0] > clock:
            return
        count = bisect_left(self._later, (clock, _AFTER_ALL))
        for row in self._later[:count]:
            self._due.append(row[1:])
            self._at[row[3]] = self._due, row[1:]
        del self._later[:count]
        self._due.sort()

    # -- what is asked -------------------------------------------------------------------------------

    def first(self, count: int, prefers: str = "") -> list[Scored]:
        """The best so many, in order; before them the node that knows the prompt, if it is worth it."""
        found: list[Scored] = [row[-1] for row in self._due[:count]]
        for rows in (self._later, self._others):
            if rows and (left := count - len(found)) > 0:
                found += [row[-1] for row in rows[:left]]
        if prefers and (c := self._candidates.get(prefers)) is not None:
            scored: Scored = self._at[prefers][1][-1]
            if self._best.kept(c, scored.free, scored.latency):
                known = structs.replace(scored, by_prefix=True)
                return [known, *(s for s in found if s is not scored)][:count]
        return found


class Alone:
    """A `Standing` of one candidate, which is next whatever happens: nothing is compared."""

    def __init__(self, candidate: Candidate) -> None:
        self._weigh(candidate)

    def __len__(self) -> int:
        return 1

    def _weigh(self, c: Candidate) -> None:
        self._candidate, free = c, free_share(c)
        quick = latency(c.ttft_ms, c.ttft_ms)
        self._scored = Scored(c.node, free * quick * c.weight, free, quick, c.weight, c.weight_from, True)

    def note(self, nodes: Iterable[str], loads: Callable[[str], int], turns: Turns) -> None:
        """As `Standing.note`."""
        c = self._candidate
        if c.in_flight != (in_flight := loads(c.node)):
            self._weigh(structs.replace(c, in_flight=in_flight))

    def first(self, count: int, prefers: str = "") -> list[Scored]:
        """As `Standing.first`."""
        c, scored = self._candidate, self._scored
        if prefers == c.node and c.in_flight < c.slots:
            return [structs.replace(scored, by_prefix=True)]
        return [scored]


_AFTER_ALL: Final = float("inf")
"""Behind a clock: after all rows of that time, whatever their scores."""
