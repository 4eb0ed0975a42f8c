"""Streams that are held open: what a web process holds for them besides sockets, and how many it can hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from benchmarks.speed.figures import Broken, Seen, streams
from benchmarks.speed.gateways import Target

T = TypeVar("T")

_PER_SECOND = 0.5
"""Tokens of each stream: enough to see that it lives."""
_OPENED_PER_SECOND = 250.0
_AFTER_SECONDS = 3.0


def thousand(target: Target, seconds: float) -> Seen:
    """Threads and database connections of the web process with no stream and with 1,000: by how many more."""
    web = target.parts["web"]

    def look() -> tuple[float, float]:
        seen = []
        for _ in range(9):  # now and then a thread writes, by a connection of a moment
            seen.append((web.threads(), web.open_files(".sqlite3")))
            time.sleep(0.2)
        threads, databases = zip(*seen, strict=True)
        return statistics.median(threads), statistics.median(databases)

    # What the first requests start and open (SQLite keeps a file until no lock on it is left) is no stream's.
    streams(target, 1.0, "--streams", 64, "--tokens", 20)
    none = look()
    some, _ = _while_open(target, 1000, seconds, look)
    return {"held_threads": some[0] - none[0], "held_databases": some[1] - none[1]}


def most(target: Target, seconds: float) -> Seen:
    """5,000 streams on one web process, each to its end."""
    rss, seen = _while_open(target, 5000, seconds, target.parts["web"].rss_mb)
    if seen["ended"] != 5000:
        raise Broken(f"{target.name}: {seen['ended']:.0f} of 5,000 streams ended well")
    return {"held_most": seen["most_open"], "held_rss_mb": rss}


def _while_open(target: Target, count: int, seconds: float, look: Callable[[], T]) -> tuple[T, Seen]:
    """What there is to see once so many streams are open, and what these have seen. Raises `Broken`."""
    ramp = count / _OPENED_PER_SECOND
    tokens = round(_PER_SECOND * (ramp + seconds + 2 * _AFTER_SECONDS))
    with ThreadPoolExecutor(1) as load:
        held = load.submit(
            streams,
            target,
            0,
            "--streams",
            count,
            "--tokens",
            tokens,
            "--per-second",
            _PER_SECOND,
            "--once",
            "--ramp",
            ramp,
        )
        time.sleep(ramp + _AFTER_SECONDS)
        found = look()
        return found, held.result()
