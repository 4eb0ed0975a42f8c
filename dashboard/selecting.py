"""Which of a thousand nodes a page shows: those that match, those in need first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from dashboard.state import Level, NodeCard, Shown

NODES_A_PAGE = 48

Filter = Literal["", "attention", "online", "draining", "pending", "gone"]
_STATES: dict[str, tuple[Shown, ...]] = {
    "online": (Shown.ONLINE,),
    "draining": (Shown.DRAINING,),
    "pending": (Shown.PENDING,),
    "gone": (Shown.GONE,),
}


class View(Struct, frozen=True, forbid_unknown_fields=True):
    """What one page wants to see of the nodes. `q` is looked for in names of nodes, models and GPUs."""

    q: Annotated[str, Meta(max_length=100)] = ""
    show: Filter = ""
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1


def view_of(query: str) -> View:
    """What the query of an address asks for. What makes no sense asks for everything."""
    asked = {name: value for name, value in parse_qsl(query) if name in View.__struct_fields__}
    try:
        return msgspec.convert(asked, View, strict=False)
    except msgspec.ValidationError:
        return View()


@dataclass(frozen=True, slots=True)
class Selection:
    cards: list[NodeCard]
    page: int  # may be less than was asked for: nodes leave
    pages: int
    matching: int
    of: int


def select(nodes: Sequence[NodeCard], view: View) -> Selection:
    """The nodes of a page, worst first, then by name."""
    words = view.q.lower().split()
    found = [n for n in nodes if _shows(n, view.show) and all(_says(n, word) for word in words)]
    found.sort(key=lambda n: (n.state == Shown.GONE, -n.level, n.name))
    pages = max(1, -(-len(found) // NODES_A_PAGE))
    page = min(view.page, pages)
    start = (page - 1) * NODES_A_PAGE
    return Selection(found[start : start + NODES_A_PAGE], page, pages, len(found), len(nodes))


def _shows(node: NodeCard, show: str) -> bool:
    if show == "attention":
        return node.level >= Level.WARN
    return not show or node.state in _STATES[show]


def _says(node: NodeCard, word: str) -> bool:
    names = (node.name, node.id, *(m.name for m in node.models), *(g.name for g in node.gpus))
    return any(word in name.lower() for name in names)
