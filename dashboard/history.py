"""Curves: the samples of a range, in steps that a chart can show."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from itertools import groupby
from typing import Any, Final

from django.utils import timezone

from dashboard.figures import quantile
from dashboard.models import Sample
from dashboard.sampling import added

RANGES: Final = {
    "5m": (300, 10),
    "1h": (3600, 10),
    "6h": (6 * 3600, 60),
    "24h": (86400, 300),
    "7d": (7 * 86400, 1800),
}
"""Name -> seconds, and seconds of a step: 30 to 360 points each."""


def read(name: str, now: datetime.datetime | None = None) -> dict[str, Any]:
    """The curves of one of `RANGES`: times in seconds since the epoch, rates each second, times to first
    token in seconds, None where nothing was sampled. One query."""
    seconds, step = RANGES[name]
    end = int((now or timezone.now()).timestamp()) // step * step
    begin = end - seconds
    rows = Sample.objects.filter(at__gte=datetime.datetime.fromtimestamp(begin, datetime.UTC)).order_by("at")
    found = {
        at: added(list(group), step)
        for at, group in groupby(rows, lambda r: int(r.at.timestamp()) // step * step)
    }
    times = list(range(begin, end + 1, step))
    if times and times[-1] not in found:
        times.pop()  # it is not over yet

    def curve(figure: Callable[[Sample], float | None]) -> list[float | None]:
        return [_rounded(figure(found[at])) if at in found else None for at in times]

    return {
        "range": name,
        "step": step,
        "at": times,
        "requests": curve(lambda r: r.requests / r.covered),
        "errors": curve(lambda r: r.errors / r.covered),
        "tokens": curve(lambda r: r.completion_tokens / r.covered),
        "prompt_tokens": curve(lambda r: r.prompt_tokens / r.covered),
        "ttft_p50": curve(lambda r: quantile(r.first_tokens, 0.5)),
        "ttft_p95": curve(lambda r: quantile(r.first_tokens, 0.95)),
        "waiting": curve(lambda r: r.waiting),
        "running": curve(lambda r: r.running),
        "nodes": curve(lambda r: r.nodes),
    }


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)
