"""What one web process sees of the cluster, and what it decides by it.

Fresh to within one refresh, so never the last word: that is the board's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable

from gputorrent.chosen import settings
from gputorrent.redis import Pipe
from jobs import breaker, poison, routing
from jobs.affinity import Affinity
from jobs.board import Board
from jobs.breaker import Breaker
from jobs.candidates import candidates
from jobs.errors import JobError
from jobs.interactive import Request
from jobs.poison import Strikes
from jobs.refusal import refusal
from jobs.scoring import Candidate
from jobs.spreading import Spreading
from jobs.standings import Standings
from nodes.view import Snapshot
from worker_agent.contract import Outcome

log = logging.getLogger(__name__)


class Outlook:
    """Nodes, loads, breakers, strikes, and the turns and prefixes that this process remembers."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._standings = Standings(self.candidates, self._contexts)
        self.affinity, self.spreading = Affinity(), Spreading(self._standings.touch)
        self.in_flight: dict[str, int] = {}
        """Attempts for each ``node/model``: the board's figure at the last refresh, plus our own since."""
        self.breakers: dict[str, Breaker] = {}
        """By ``node/model``, those that were not closed at the last refresh."""
        self.strikes: dict[str, Strikes] = {}
        """By fingerprint, as of the last refresh, plus our own since it was asked for."""
        self._struck: dict[str, Strikes] = {}  # those

    async def refresh(self, pipe: Pipe, board: Board, web: str) -> frozenset[str]:
        """Look at everything again, in one trip. Returns the nodes that changed or are back. Raises
        `redis.RedisError`."""
        self._struck = {}
        changed, seen, _ = await asyncio.gather(
            self.snapshot.refresh(pipe), board.look(), self.affinity.exchange(pipe, web)
        )
        for line in breaker.changes(self.breakers, seen.breakers):
            log.warning(line)
        self.in_flight, self.breakers, self.strikes = seen.loads, seen.breakers, seen.strikes
        # Counted while the look was under way: it may have been answered before, and a request that had its
        # last strike would get one more engine.
        for fingerprint, strikes in self._struck.items():
            if fingerprint not in self.strikes or self.strikes[fingerprint].count < strikes.count:
                self.strikes[fingerprint] = strikes
        self._standings.clear()
        return changed

    async def refresh_nodes(self, pipe: Pipe) -> frozenset[str]:
        """Look at the nodes alone. Raises `redis.RedisError`."""
        changed = await self.snapshot.refresh(pipe)
        self._standings.clear()
        return changed

    # -- decisions -----------------------------------------------------------------------------------

    def candidates(self, model: str, only: Collection[str] | None = None) -> list[Candidate]:
        """Every node that offers the model, as the snapshot shows it; of these `only` some, if given."""
        return candidates(self.snapshot, self.in_flight, self.breakers, model, only)

    def decide(self, request: Request, tried: Collection[str]) -> routing.Decision:
        """Where a request should go, as things stand."""
        model = request.model
        prefers = self.affinity.node_for(request.prefix)
        hints = routing.Hints(request.tokens_wanted, self.spreading.turns(model), prefers)
        return self._standings.decide(model, self.in_flight, hints, request.only, tried)

    def longest_context(self, model: str) -> int:
        """The most tokens that any node takes for a model; 0 while that is unknown."""
        contexts = self._standings.contexts(model)
        return contexts[-1] if contexts else 0

    def _contexts(self, model: str) -> Iterable[int]:
        return (m.max_model_len for _, m in self.snapshot.by_model.get(model, ()))

    def refusal(self, model: str, refuse: routing.Refuse, last: str = "") -> JobError:
        """What a caller is told when no node can serve a model. `last` is how the last attempt ended."""
        return refusal(model, refuse, last, offered=model in self.snapshot.by_model)

    def check_held_off(self, request: Request) -> None:
        """Raises `HeldOff` for a request that has brought down several engines."""
        if self.strikes:
            poison.check(self.strikes, request.tenant, request.model, request.body, time.monotonic())

    # -- what this process has done since the last refresh -------------------------------------------

    def placed(self, node: str, model: str) -> int:
        """An attempt more. Returns the incarnation of the node, 0 if that is unknown."""
        place = f"{node}/{model}"
        self.in_flight[place] = self.in_flight.get(place, 0) + 1
        self._standings.touch(model, node)
        view = self.snapshot.nodes.get(node)
        return view.incarnation if view else 0

    def left(self, node: str, model: str) -> None:
        """An attempt less."""
        place = f"{node}/{model}"
        self.in_flight[place] = max(0, self.in_flight.get(place, 0) - 1)
        self._standings.touch(model, node)

    def roomy(self, node: str, model: str) -> bool:
        """Whether three quarters of a node's slots are free, so that nobody misses one for a moment, as far
        as is known here."""
        view = self.snapshot.nodes.get(node)
        if view is None:
            return False
        used = self.in_flight.get(f"{node}/{model}", 0)
        for m in view.models:
            if m.name == model:
                return 4 * used <= m.slots
        return False

    def suspect(self, request: Request, outcome: str) -> str:
        """The request's fingerprint, if this outcome says something of the request; empty otherwise."""
        if outcome == Outcome.ENGINE_DIED:
            return poison.fingerprint(request.tenant, request.model, request.body)
        if outcome == "done" and self.strikes:
            known = poison.fingerprint(request.tenant, request.model, request.body)
            self._struck.pop(known, None)
            return known if self.strikes.pop(known, None) is not None else ""
        return ""

    def struck(self, fingerprint: str, strikes: int) -> None:
        """The board has counted so many strikes against a request."""
        known = Strikes(strikes, time.monotonic() + settings.HOLD_OFF_SECONDS)
        self.strikes[fingerprint] = self._struck[fingerprint] = known
