"""How much goes through the cluster: rates of the last minute, from the counts of all web processes."""

from __future__ import annotations

from typing import Any

from gputorrent.redis import Pipe
from jobs import metrics
from jobs.metrics import Family, Series


class Rates:
    """Counts of the last minute, and the figures made of them."""

    def __init__(self, counts: dict[Series, int], seconds: float) -> None:
        self._counts = counts
        self._seconds = seconds

    def of(self, model: str | None = None) -> dict[str, Any]:
        """Of one model, or of all requests, refused ones included. Times are in seconds."""
        found = metrics.histograms(self._counts, metrics.FIRST_TOKEN, labels=1 if model else 0)
        ttft = found.get((model,) if model else ())
        p50, p95 = (ttft.quantile(0.5), ttft.quantile(0.95)) if ttft else (None, None)
        requests = self._sum(metrics.REQUESTS, model)
        fine = self._sum(metrics.REQUESTS, model, outcome="completed")
        return {
            "seconds": round(self._seconds, 1),
            "requests_per_s": self._each(requests),
            "errors_per_s": self._each(requests - fine),
            "prompt_tokens_per_s": self._each(self._sum(metrics.PROMPT_TOKENS, model)),
            "completion_tokens_per_s": self._each(self._sum(metrics.COMPLETION_TOKENS, model)),
            "ttft_p50_s": _rounded(p50),
            "ttft_p95_s": _rounded(p95),
        }

    def _sum(self, family: Family, model: str | None, **labels: str) -> int:
        wanted = {**labels, **({"model": model} if model else {})}
        return sum(
            count
            for values, count in metrics.of_family(self._counts, family).items()
            if wanted.items() <= dict(zip(family.labels, values, strict=True)).items()
        )

    def _each(self, count: int) -> float:
        return round(count / self._seconds, 3)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


async def read(pipe: Pipe) -> Rates:
    """Raises `redis.RedisError`."""
    return Rates(*await metrics.recent(pipe))
