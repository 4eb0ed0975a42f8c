"""What can be asked of a model now, in words, from the nodes that offer it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jobs.routing import Candidate
from worker_agent.contract import ModelState

_IN_TURN: Final = (
    (ModelState.READY, "loaded", "loaded"),
    (ModelState.LOADING, "loading", "being loaded"),
    (ModelState.DOWNLOADING, "loading", "being downloaded"),
    (ModelState.SLEEPING, "asleep", "asleep: wakes with the first request"),
    (ModelState.OFFERED, "cold", "not loaded: loads with the first request"),
    (ModelState.UNLOADING, "cold", "being unloaded"),
)
"""What is best of several nodes says what the model is: state, its word for scripts, and for people."""


def offer(model: str, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A model as the playground's list shows it. `usable`: a request for it would be answered, if need be
    after a wait."""
    working = [c for c in candidates if c.takes_work]
    for state, word, words in _IN_TURN:
        found = [c for c in working if c.state == state and (c.fits or state == ModelState.READY)]
        if found:
            if state == ModelState.READY:
                words = f"loaded on {len(found)} node{'s' if len(found) > 1 else ''}"
            context = max(c.max_model_len for c in found)
            return _line(model, word, words, usable=True, context=context)
    if not working:
        return _line(model, "away", "no node that offers it takes work now")
    why = next((c.reason for c in working if c.reason), "")
    if all(not c.fits for c in working):
        return _line(model, "failed", f"fits on no node{f': {why}' if why else ''}")
    return _line(model, "failed", f"failed{f': {why}' if why else ''}")


def _line(model: str, state: str, words: str, *, usable: bool = False, context: int = 0) -> dict[str, Any]:
    line = {"id": model, "state": state, "words": words[:200]}
    return {**line, "usable": usable, "max_model_len": context or None}
