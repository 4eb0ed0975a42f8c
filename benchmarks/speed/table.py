"""The table: each figure of ours, vllm-router's in the same run, what a peer did before, the goal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.speed.figures import Seen
from benchmarks.speed.gateways import DIRECT, OURS, ROUTER

Medians = Mapping[str, Seen]
_Value = Callable[[Medians, str], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: how it follows from the medians for a target, and the goal, from those of vllm-router."""

    name: str
    value: _Value
    goal: Callable[[float], float] | None = None
    more_is_better: bool = False
    peer: str = ""  # production-stack 0.1.12, measured before on a quiet 2-core machine


def _of(name: str) -> _Value:
    return lambda medians, target: medians[target][name]


def _added(name: str) -> _Value:
    return lambda medians, target: medians[target][name] - medians[DIRECT][name]


def _share(name: str) -> _Value:
    return lambda medians, target: medians[target][name] / medians[DIRECT][name]


ROWS = (
    Row("1 request: added p50, ms", _added("one_p50_ms"), lambda r: 2.5 * r, peer="0.98"),
    Row("64 at once: requests/s", _of("rps_64"), lambda r: 0.5 * r, True, "873"),
    Row("64 at once: gateway CPU, us a request", _of("rps_64_cpu_gateway")),
    Row("50 ms engine, 256 at once: added p50, ms", _added("slow_p50_ms"), lambda _: 6.0, peer="269"),
    Row("200 KB prompts, 16 at once: requests/s", _of("long_rps"), lambda _: 990.0, True, "495"),
    Row("1 stream: added TTFT, ms", _added("stream_ttft_ms"), lambda r: 2 * r, peer="2.6"),
    Row("64 streams: TTFT p99, ms", _of("ttft_64_p99_ms"), lambda r: r),
    Row("256 streams: tokens/s, of the engine's", _share("tokens_per_s"), lambda _: 0.95, True, "0.84"),
    Row("256 streams: gateway CPU, us a token", _of("token_cpu_gateway"), lambda r: r, peer="25"),
    Row("64 streams: agent CPU, us a token", _of("token_cpu_agent_64"), lambda _: 60.0),
    Row("RSS idle: web process and Redis, MB", _of("rss_serving_mb"), lambda _: 150.0, peer="136"),
    Row("RSS idle: with the jobworker, MB", _of("rss_idle_mb")),
    Row("RSS with 256 streams, MB", _of("rss_mb"), peer="210"),
    Row("1,000 streams: threads of the web process more than idle", _of("held_threads"), lambda _: 0),
    Row("1,000 streams: its database connections more", _of("held_databases"), lambda _: 0),
    Row("5,000 streams on one web process: open at once", _of("held_most"), lambda _: 5000, True),
    Row("5,000 streams: RSS of the web process, MB", _of("held_rss_mb")),
    Row("2 workers over 1: completions", _of("workers_completions")),
    Row("2 workers over 1: what ends in the web process", _of("workers_refusals"), lambda _: 1.7, True),
)


def render(medians: Medians) -> str:
    """A table in Markdown. What was not measured is left out; a goal that was missed has a cross."""
    lines = [
        f"| | {OURS} | {ROUTER}, same run | goal | | production-stack, earlier |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        ours, router = _try(row, medians, OURS), _try(row, medians, ROUTER)
        if ours is None:
            continue
        goal = None if row.goal is None else row.goal(router if router is not None else float("nan"))
        known = goal is not None and goal == goal
        met = known and goal is not None and (ours >= goal if row.more_is_better else ours <= goal)
        sign, mark = ("≥" if row.more_is_better else "≤"), ("✓" if met else "✗")
        cells = [row.name, _text(ours), _text(router), f"{sign} {_text(goal)}" if known else ""]
        lines.append(f"| {' | '.join([*cells, mark if known else '', row.peer])} |")
    return "\n".join(lines)


def _try(row: Row, medians: Medians, target: str) -> float | None:
    try:
        return row.value(medians, target)
    except KeyError:
        return None


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
