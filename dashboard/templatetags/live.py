"""How the dashboard writes figures, times and states."""

from __future__ import annotations

import datetime
from typing import Final

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dashboard.state import Level
from worker_agent.contract import ModelState

register = template.Library()

_NODE: Final = {
    "online": "online",
    "silent": "does not answer",
    "unhealthy": "does not answer",
    "pending": "waits for approval",
    "draining": "draining",
    "gone": "has left",
}
_MODEL: Final = {
    ModelState.READY: "ready",
    ModelState.LOADING: "loading",
    ModelState.DOWNLOADING: "downloading",
    ModelState.SLEEPING: "asleep",
    ModelState.UNLOADING: "unloading",
    ModelState.FAILED: "failed",
    ModelState.OFFERED: "not loaded",
}
_ICONS: Final = {
    Level.FINE: "check_circle",
    Level.NOTE: "info",
    Level.WARN: "warning",
    Level.BAD: "error",
}


@register.filter
def node_state(state: str) -> str:
    """A node's state in words."""
    return _NODE.get(state, state)


@register.filter
def model_state(state: str) -> str:
    """A model's state on a node in words."""
    return _MODEL.get(ModelState(state), state) if state in set(ModelState) else state


@register.filter
def icon(level: int) -> str:
    """The symbol of a level."""
    return _ICONS[Level(level)]


@register.filter
def level(of: int) -> str:
    """The level's name, for a class of the style sheet."""
    return Level(of).name.lower()


@register.filter
def rate(each_second: float) -> str:
    """0, 0.25, 4.2, 1,240."""
    if each_second >= 100:
        return f"{each_second:,.0f}"
    if each_second >= 10:
        return f"{each_second:.1f}"
    return f"{each_second:.2f}".rstrip("0").rstrip(".")


@register.filter
def ago(moment: float | None) -> SafeString | str:
    """A time; the page shows how long ago that is, and the viewer's own time on pointing at it."""
    if moment is None:
        return "never"
    at = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    text = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    return format_html('<time datetime="{}" data-ago>{}</time>', at.isoformat(timespec="seconds"), text)


@register.filter
def share(part: int, whole: int) -> int:
    """Whole percents, 0 to 100."""
    return max(0, min(100, round(100 * part / whole))) if whole else 0
