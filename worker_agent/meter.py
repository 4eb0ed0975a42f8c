"""How a model on this node does: our own counts, and the engine's ``/metrics``. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_STEPS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:iteration_tokens_total_count")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's own view of its batch; `kv_cache_usage` from 0 to 1. `steps` grows whenever it does
    something, whoever it is for."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    steps: float = 0.0


def parse_metrics(text: str) -> EngineLoad:
    """Read vLLM's Prometheus text. Engine ranks are summed; of the cache shares the largest counts."""
    sums = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
    cache = steps = 0.0
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        try:
            value = float(rest.rsplit(None, 1)[-1])
        except (ValueError, IndexError):
            continue
        if name in sums:
            sums[name] += value
        elif name in {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"}:
            cache = max(cache, value)
        elif name in _STEPS:
            steps += value
    running, waiting = (max(0, int(value)) for value in sums.values())
    return EngineLoad(running, waiting, min(1.0, max(0.0, cache)), steps)


class Meter:
    """Tokens and times to first token since the last `read`. `last_sign` is when a token was last seen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = self.last_sign = clock()
        self._tokens = 0
        self._first_tokens = 0
        self._first_ms = 0.0

    def tokens(self, count: int) -> None:
        """Count generated tokens; a correction may be negative."""
        self._tokens += count
        self.last_sign = self._clock()

    def first_token(self, milliseconds: float) -> None:
        """Note one request's time to its first token."""
        self._first_tokens += 1
        self._first_ms += milliseconds

    def read(self) -> tuple[float, float]:
        """Tokens/s and mean ms to the first token since the last read (0 if there was none); starts anew."""
        now = self._clock()
        seconds = max(1e-3, now - self._since)
        rate = max(0, self._tokens) / seconds
        first = self._first_ms / self._first_tokens if self._first_tokens else 0.0
        self._since, self._tokens, self._first_tokens, self._first_ms = now, 0, 0, 0.0
        return rate, first
