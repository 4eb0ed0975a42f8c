"""What the counts of the web processes say of a stretch of time, for all models and for each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from api.error_codes import CODES
from jobs import metrics
from jobs.metrics import Histogram, Series

WANTED: Final = frozenset(
    f.name for f in (metrics.REQUESTS, metrics.PROMPT_TOKENS, metrics.COMPLETION_TOKENS, metrics.FIRST_TOKEN)
)
"""The families of counts that are looked at here."""

_ENDS_WELL: Final = frozenset({"completed", "cancelled", "client_closed"})


def is_error(outcome: str) -> bool:
    """Whether the cluster owed its caller something else. What a caller did wrong, or gave up, is none."""
    if outcome in _ENDS_WELL:
        return False
    known = CODES.get(outcome)
    return known is None or known.status >= 500 or outcome == "queue_full"


@dataclass(slots=True)
class Sums:
    """Counts, and times to first token as bucket's bound (see `jobs.metrics`) -> how many."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_tokens: Counter[str] = field(default_factory=Counter)


def sums(counts: Mapping[Series, int]) -> tuple[Sums, dict[str, Sums]]:
    """Of all models, and by model."""
    whole, each = Sums(), dict[str, Sums]()
    for (name, *labels), count in counts.items():
        if name not in WANTED:
            continue
        model = labels[1] if name == metrics.REQUESTS.name else labels[0]
        for of in (whole, each.setdefault(model, Sums())):
            if name == metrics.REQUESTS.name:
                of.requests += count
                of.errors += count if is_error(labels[3]) else 0
            elif name == metrics.PROMPT_TOKENS.name:
                of.prompt_tokens += count
            elif name == metrics.COMPLETION_TOKENS.name:
                of.completion_tokens += count
            elif labels[-1] != metrics.SUM:
                of.first_tokens[labels[-1]] += count
    return whole, each


def quantile(first_tokens: Mapping[str, int], q: float) -> float | None:
    """The q-quantile of times to first token in seconds, as `Histogram.quantile` estimates it."""
    bounds = dict.fromkeys((*metrics.FIRST_TOKEN.buckets, float("inf")), 0)
    bounds |= {float(bound): count for bound, count in first_tokens.items()}
    found = Histogram(bounds).quantile(q)
    return None if found is None else round(found, 4)
