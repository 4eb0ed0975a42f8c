"""What a caller is told when a job can be placed nowhere, or not now. Pure."""

from __future__ import annotations

from math import ceil
from typing import Final

from jobs.board import Bound, Full
from jobs.errors import JobError, ModelUnavailable, NoSuchModel, NoWorkers, QueueFull, UpstreamFailed
from jobs.routing import Refuse, Why

LONGEST_RETRY_SECONDS: Final = 120


def refusal(model: str, refuse: Refuse, last: str = "", *, offered: bool = False) -> JobError:
    """No node can serve the model. `last` is how the last attempt ended; `offered`: some node has the model,
    though perhaps none that the key may use."""
    why, detail = refuse.why, refuse.detail
    if why == Why.UNKNOWN_MODEL and offered:
        return NoWorkers(f"none of the nodes that this key may use serves `{model}`")
    if why == Why.UNKNOWN_MODEL:
        return NoSuchModel(f"The model `{model}` does not exist: no node offers it.")
    if why == Why.ALL_TRIED:
        return UpstreamFailed(f"no node could answer: {last}")
    if why == Why.NEVER_FITS:
        return ModelUnavailable(f"`{model}` fits on no node: {detail}")
    if why == Why.LOAD_FAILED:
        return ModelUnavailable(f"`{model}` could not be loaded: {detail}", retry_after=30.0)
    return NoWorkers(f"no live node serves `{model}` at the moment")


def queue_full(model: str, full: Full) -> QueueFull:
    """All slots are taken, and a bound of the queue was met."""
    said = {
        Bound.SLOTS: f"every slot for {model} is taken, and nobody may wait",
        Bound.MODEL: f"{full.waiting} requests wait for {model} already",
        Bound.TOTAL: "too many requests wait already",
        Bound.TENANT: "too many requests of this API key wait already",
    }[full.bound]
    return QueueFull(said, retry_after=retry_after(full.waiting, full.interval))


def retry_after(waiting: int, interval: float | None) -> float | None:
    """Seconds until those that wait now will have been placed, at the present rate; None if that is unknown.

    From 1 to 120: a short queue may be full again by then, and a rate does not hold for long.
    """
    if interval is None or not waiting:
        return None
    return float(min(LONGEST_RETRY_SECONDS, max(1, ceil(waiting * interval))))
