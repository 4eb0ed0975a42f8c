"""Do more web processes add up? One and two on two cores, nothing pinned, in alternating rounds."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.speed import wrk
from benchmarks.speed.figures import CHAT, Broken, Seen
from benchmarks.speed.gateways import OURS, Target, cluster
from benchmarks.speed.processes import Cores

_LOADS: dict[str, dict[str, Any]] = {
    "completions": CHAT,
    # Key, body and routing of a completion, but no work for Redis, the agent and the engine beside it.
    "refusals": {**CHAT, "model": "nobody-has-it"},
}


def compare(cores: Cores, rounds: int, seconds: float) -> Seen:
    """Requests a second by two web processes over those by one, at 64 at once, for each kind of load."""
    seen: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for workers in (1, 2):
            with cluster(cores, workers=workers, limits=False, spread=True) as targets:
                for name in _LOADS:
                    _per_second(targets[OURS], name, 1.0)  # warm
                    found = _per_second(targets[OURS], name, seconds)
                    seen.setdefault((name, workers), []).append(found)
    medians = {key: statistics.median(values) for key, values in seen.items()}
    return {f"workers_{name}": medians[name, 2] / medians[name, 1] for name in _LOADS}


def _per_second(target: Target, name: str, seconds: float) -> float:
    found = wrk.run(target.port, target.key, _LOADS[name], connections=64, seconds=seconds)
    expected = 0 if name == "completions" else found.requests
    if abs(found.errors - expected) > 0.05 * found.requests:
        raise Broken(f"{target.name}: {found.errors} of {found.requests} {name} were refused")
    return found.per_second
