"""Whether the metrics count what the ledger has: jobs that ended, by state, since Redis was last emptied."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import httpx

from tests.chaos.checks import TERMINAL, Check
from tests.chaos.world import World

_JOBS = re.compile(r'^gputorrent_jobs_total\{.*state="(\w+)".*\} (\d+)', re.MULTILINE)
EDGE_SECONDS = 3.0
"""Counts reach Redis once a second, and a killed process takes those of its last second along."""


def read(world: World) -> str:
    """What `GET /metrics` says; empty where there is none."""
    answer = httpx.get(f"{world.cluster.url}/metrics", headers=world.cluster.headers, timeout=10)
    return answer.text if answer.status_code == 200 else ""


def agreement(world: World, page: str, rows: dict[str, dict[str, Any]]) -> Check:
    """Counts may miss what ended just before a process died or Redis was emptied, and may have what a dead
    web process counted but did not record."""
    check = Check("the metrics count the jobs that the ledger has")
    if not page:
        return check
    counted: Counter[str] = Counter()
    for state, count in _JOBS.findall(page):
        counted[state] += int(count)
    wall = time.time() - time.monotonic()
    ends = [
        (row["state"], row["finished_at"].timestamp() - wall) for row in rows.values() if row["finished_at"]
    ]
    emptied = [s for s in world.spans if s.what == "Redis restarted empty"]
    since = max((s.began for s in emptied), default=0.0) - EDGE_SECONDS
    surely = max((s.ended or s.began for s in emptied), default=0.0) + EDGE_SECONDS
    edges = [(s.began - EDGE_SECONDS, (s.ended or s.began) + EDGE_SECONDS) for s in world.spans]
    unrecorded = sum(row["error_code"] == "coordinator_lost" for row in rows.values())
    for state in sorted(TERMINAL):
        at = [end for of, end in ends if of == state]
        most = sum(end >= since for end in at) + unrecorded
        least = sum(end >= surely and not any(a <= end <= b for a, b in edges) for end in at)
        check.see(least <= counted[state] <= most, f"{counted[state]} {state}, of {least} to {most}")
        check.excused += most - least
    return check
