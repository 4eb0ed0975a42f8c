"""Counting: in memory on the request path, added up in Redis for all processes together.

A process counts in a dict and gives the increments to Redis each second (`jobs.watch`) and when it stops;
`metrics.lua` takes each batch once, so a flush whose answer was lost counts nothing twice. Any process can
then answer for all of them, and a restart of one loses a second's counts at most. When Redis comes back empty
the counts start anew, which Prometheus takes for a restart.

Counts are whole numbers: sums of times are kept in microseconds. Label values are names that nodes or this
code made up, never a caller's words; see `UNKNOWN`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gputorrent.redis import Pipe, Script

LUA: Final = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")
TOTALS: Final = "gt:metrics"
RECENT: Final = "gt:metrics:recent:"
STEP_SECONDS: Final = 5
UNKNOWN: Final = "unknown"
"""Stands for a model that no node offered: callers may ask for as many as they like."""
SUM: Final = "sum"
INFINITY: Final = "+Inf"


@dataclass(frozen=True, slots=True)
class Family:
    """A counter; or, with `buckets` (upper bounds in seconds), a histogram of times."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS: Final = Family(
    "requests",
    "Requests for tokens that are over; outcome is `completed` or the error's code.",
    ("path", "model", "mode", "outcome"),
)
ERRORS: Final = Family("errors", "Errors that requests of any kind ended with.", ("code",))
JOBS: Final = Family("jobs", "Jobs that ended, as in the ledger.", ("model", "state"))
ATTEMPTS: Final = Family("attempts", "Placements that ended.", ("node", "outcome"))
PROMPT_TOKENS: Final = Family("prompt_tokens", "Tokens read.", ("model",))
COMPLETION_TOKENS: Final = Family("completion_tokens", "Tokens generated.", ("model",))
FIRST_TOKEN: Final = Family(
    "time_to_first_token_seconds",
    "From the request to the first of its answer, waiting included.",
    ("model", "mode"),
    (*_TIMES, 300.0, 900.0),
)
TOTAL: Final = Family(
    "request_duration_seconds",
    "From the request to the end of its answer, of those that were answered.",
    ("model", "mode"),
    (*_TIMES, 300.0, 900.0, 3600.0),
)
QUEUE_WAIT: Final = Family(
    "queue_wait_seconds",
    "From the request to its first place on a node.",
    ("model", "mode"),
    (0.001, *_TIMES, 300.0, 900.0),
)
BATCH_LINES: Final = Family(
    "batch_lines",
    "Lines of batches that are over: completed, refused, failed, or what their batch ended as.",
    ("outcome",),
)
STALE: Final = Family("stale_replies", "Messages of nodes that matched no live attempt.")
DROPPED: Final = Family("records_dropped", "Records given up because the ledger was away for too long.")

FAMILIES: Final = {
    f.name: f
    for f in (
        *(REQUESTS, ERRORS, JOBS, ATTEMPTS, PROMPT_TOKENS, COMPLETION_TOKENS),
        *(FIRST_TOKEN, TOTAL, QUEUE_WAIT, BATCH_LINES, STALE, DROPPED),
    )
}

_BOUNDS: Final = {f.name: (*(f"{bound:g}" for bound in f.buckets), INFINITY) for f in FAMILIES.values()}

Series = tuple[str, ...]
"""A family's name and its label values; for histograms also the bucket's bound, or `SUM`."""


@dataclass(frozen=True, slots=True)
class Times:
    """The series of a histogram, ready to be counted in: one for each bucket, and the sum."""

    bounds: tuple[float, ...]
    buckets: tuple[Series, ...]
    sum: Series


def times(family: Family, *labels: str) -> Times:
    name = family.name
    return Times(
        family.buckets,
        tuple((name, *labels, bound) for bound in _BOUNDS[name]),
        (name, *labels, SUM),
    )


class Counts:
    """Increments that nobody has taken yet. One thread only."""

    def __init__(self) -> None:
        self.pending: defaultdict[Series, int] = defaultdict(int)

    def add(self, family: Family, *labels: str, by: int = 1) -> None:
        self.pending[family.name, *labels] += by

    def observe(self, times: Times, seconds: float) -> None:
        """Note a time. A clock that was set back makes it 0, never negative."""
        if seconds < 0.0:
            seconds = 0.0
        self.pending[times.buckets[bisect_left(times.bounds, seconds)]] += 1
        self.pending[times.sum] += int(seconds * 1e6 + 0.5)


class Metrics(Counts):
    """The counts of one web process, and their way to Redis."""

    def __init__(self, pipe: Pipe, source: str) -> None:
        super().__init__()
        self._source = source
        self._script = Script(pipe, LUA)
        self._sampled: list[tuple[Family, Callable[[], int]]] = []
        self._seen: dict[str, int] = {}
        self._batch: dict[Series, int] = {}
        self._number = 0
        self._flushing = asyncio.Lock()

    def sample(self, family: Family, figure: Callable[[], int]) -> None:
        """Count what something else counts already, since start: looked at with each flush."""
        self._sampled.append((family, figure))

    async def flush(self) -> None:
        """Give everything counted so far to Redis. Raises `redis.RedisError`; nothing is lost or counted
        twice, since the batch under way is kept, with its number, until Redis has said that it has it."""
        for family, figure in self._sampled:
            now = figure()
            if more := now - self._seen.get(family.name, 0):
                self.add(family, by=more)
                self._seen[family.name] = now
        async with self._flushing:
            while self._batch or self.pending:
                if not self._batch:
                    self._number += 1
                    self._batch, self.pending = self.pending, defaultdict(int)
                await self._script(self._source, self._number, *arguments(self._batch))
                self._batch = {}


def arguments(batch: dict[Series, int]) -> list[str | int]:
    """Series and increments as `metrics.lua` takes them."""
    flat: list[str | int] = []
    for series, by in batch.items():
        flat += (msgspec.json.encode(series).decode(), by)
    return flat


async def totals(pipe: Pipe) -> dict[Series, int]:
    """All counts of all processes. Raises `redis.RedisError`."""
    return _decoded(await pipe.send("HGETALL", TOTALS))


async def recent(pipe: Pipe) -> tuple[dict[Series, int], float]:
    """The counts of the last minute, and over how many seconds (60 to 65). Raises `redis.RedisError`."""
    seconds, microseconds = await pipe.send("TIME")
    now = int(seconds) + int(microseconds) / 1e6
    step, steps = int(now // STEP_SECONDS), 60 // STEP_SECONDS
    windows = await asyncio.gather(*(window(pipe, step - i) for i in range(steps + 1)))
    added: dict[Series, int] = {}
    for counts in windows:
        for series, by in counts.items():
            added[series] = added.get(series, 0) + by
    return added, 60 + now - step * STEP_SECONDS


async def window(pipe: Pipe, number: int) -> dict[Series, int]:
    """The counts of the `number`-th five seconds since the epoch (Redis's clock); kept for two minutes, and
    final once these seconds are over. Raises `redis.RedisError`."""
    return _decoded(await pipe.send("HGETALL", f"{RECENT}{number}"))


def _decoded(answer: dict[bytes, bytes] | list[bytes]) -> dict[Series, int]:
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {tuple(msgspec.json.decode(series, type=list[str])): int(count) for series, count in pairs}


def of_family(counts: dict[Series, int], family: Family) -> dict[Series, int]:
    """Label values -> count, of one family."""
    return {series[1:]: count for series, count in counts.items() if series[0] == family.name}


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound in seconds (not cumulative, infinity included), and the sum of all times."""

    counts: dict[float, int]
    sum_seconds: float = 0.0

    def quantile(self, q: float) -> float | None:
        """The q-quantile in seconds, estimated as Prometheus' `histogram_quantile` does: linear within a
        bucket; what lies beyond the last finite bound counts as that bound. None without observations."""
        rank, below = q * sum(self.counts.values()), 0.0
        for bound, count in sorted(self.counts.items()):
            if count and count >= rank:
                return below if bound == float("inf") else below + (bound - below) * rank / count
            rank -= count
            below = bound
        return None


def histograms(
    counts: dict[Series, int], family: Family, labels: int | None = None
) -> dict[Series, Histogram]:
    """The histograms of a family, added up over all but its first `labels` labels (default: none)."""
    found: dict[Series, Histogram] = {}
    for (*values, bound), count in of_family(counts, family).items():
        key = tuple(values[:labels])
        if key not in found:
            found[key] = Histogram(dict.fromkeys((*family.buckets, float("inf")), 0))
        if bound == SUM:
            found[key].sum_seconds += count / 1e6
        else:
            found[key].counts[float(bound)] = found[key].counts.get(float(bound), 0) + count
    return found
