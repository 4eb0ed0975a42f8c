"""The periods that budgets are for: days and months of UTC, by their names."""

from __future__ import annotations

import datetime
import functools
import time


def now() -> tuple[str, str]:
    """The names of today and of this month."""
    return _of(int(time.time() // 86400))


@functools.lru_cache(maxsize=2)
def _of(days: int) -> tuple[str, str]:
    """By the days since the epoch."""
    day = (datetime.date(1970, 1, 1) + datetime.timedelta(days)).isoformat()
    return day, day[:7]
