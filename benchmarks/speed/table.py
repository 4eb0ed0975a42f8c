"""The table: each figure of ours, vllm-router's in the same run, and the goal. Pure."""
from __future__ import annotations
from benchmarks.speed.figures import Seen
def render(medians: dict[str, Seen]) -> str:
    names = sorted({n for m in medians.values() for n in m})
    w = max(map(len, names))
    lines = [" " * w + "".join(f"{t:>16}" for t in medians)]
    for n in names:
        lines.append(f"{n:<{w}}" + "".join(f"{m[n]:16.3f}" if n in m else " " * 16 for m in medians.values()))
    return "\n".join(lines)
