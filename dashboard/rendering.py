"""The state as HTML, from the same templates for the first paint and for what follows.

Django escapes whatever nodes, models and callers named. What has not changed since the last time is not drawn
again, so a cluster of a thousand nodes costs what changes on the pages that somebody looks at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.template.loader import get_template

from dashboard import health, selecting
from dashboard.selecting import View
from dashboard.state import NodeCard, State

PARTS: Final = ("health", "figures", "models", "jobs", "events")
"""What is the same for everybody who watches."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page's contents: parts by name and cards by the node's id, as HTML; `order` are the cards' ids."""

    at: float = 0.0
    parts: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def changes(before: Rendered, now: Rendered) -> dict[str, Any]:
    """What a page that shows `before` must be told to show `now`. Pure."""
    told: dict[str, Any] = {"at": now.at}
    for name in ("parts", "cards"):
        old, new = getattr(before, name), getattr(now, name)
        if changed := {key: html for key, html in new.items() if old.get(key) != html}:
            told[name] = changed
    if now.order != before.order:
        told["order"] = now.order
    return told


class Renderer:
    """Remembers what it drew last. One thread at a time."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Any, str]] = {}
        self._cards: dict[str, tuple[NodeCard, str]] = {}
        self.drawn = 0
        """Templates that were rendered so far."""

    def render(self, state: State, views: Collection[View]) -> dict[View, Rendered]:
        """Every view of the state. Asks no database."""
        common = {name: self._part(name, self._context(name, state)) for name in PARTS}
        cards: dict[str, tuple[NodeCard, str]] = {}
        found = {}
        for view in views:
            selection = selecting.select(state.nodes, view)
            for card in selection.cards:
                if card.id not in cards:
                    cards[card.id] = self._card(card)
            order = [card.id for card in selection.cards]
            listing = self._draw("listing", {"selection": selection, "view": view})
            parts = {**common, "listing": listing}
            found[view] = Rendered(state.at, parts, {i: cards[i][1] for i in order}, order)
        self._cards = cards
        return found

    def _context(self, name: str, state: State) -> dict[str, Any]:
        match name:
            case "health":
                first = health.headline(state.findings, state.nodes, state.models_ready)
                rest = [f for f in state.findings if f != first]
                return {"first": first, "rest": rest}
            case "figures":
                return {"totals": state.totals, "running": state.running, "waiting": state.waiting}
            case "models":
                return {"models": state.models, "known": state.models_known}
            case "jobs":
                how_many = {"running": state.running, "waiting": state.waiting}
                start = {"keys": state.keys, "ever_asked": state.ever_asked}
                model = next((m.name for m in state.models if m.nodes_ready), "")
                return {"jobs": state.jobs, **how_many, **start, "model": model}
            case _:
                return {"events": state.events}

    def _part(self, name: str, context: dict[str, Any]) -> str:
        known = self._parts.get(name)
        if known is None or known[0] != context:
            known = self._parts[name] = (context, self._draw(name, context))
        return known[1]

    def _card(self, card: NodeCard) -> tuple[NodeCard, str]:
        known = self._cards.get(card.id)
        return known if known and known[0] == card else (card, self._draw("node", {"node": card}))

    def _draw(self, name: str, context: dict[str, Any]) -> str:
        self.drawn += 1
        time.sleep(0)  # lets the loop's thread go first: requests do not wait for a whole page to be drawn
        # A plain string: what is safe in a template is a kind of its own, which JSON does not know.
        return "".join((get_template(f"dashboard/parts/{name}.html").render(context),))
