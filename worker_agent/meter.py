"""How a model on this node does: our own counts, and the engine's ``/metrics``. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_DECODED = "vllm:inter_token_latency_seconds_count"
_DECODE_SECONDS = "vllm:inter_token_latency_seconds_sum"
_STEPS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:iteration_tokens_total_count")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's own view of its batch; `kv_cache_usage` from 0 to 1. `steps` grows whenever it does
    something, whoever it is for. `decoded` tokens took `decode_seconds` since its start, both summed over
    requests, each from its second token on."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    steps: float = 0.0
    decoded: float = 0.0
    decode_seconds: float = 0.0


def parse_metrics(text: str) -> EngineLoad:
    """Read vLLM's Prometheus text. Engine ranks are summed; of the cache shares the largest counts."""
    sums = dict.fromkeys(
        ("vllm:num_requests_running", "vllm:num_requests_waiting", _DECODED, _DECODE_SECONDS), 0.0
    )
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
    running, waiting, decoded, decode_seconds = (max(0.0, value) for value in sums.values())
    return EngineLoad(int(running), int(waiting), min(1.0, max(0.0, cache)), steps, decoded, decode_seconds)


class Pace:
    """The decode speed of one request: the best of recent beats, for a batch that is full slows each request
    down and says nothing of the GPU. A better one counts at once; an old one fades by a hundredth with each
    beat that has a new one."""

    MIN_TOKENS = 512

    def __init__(self) -> None:
        self._before = EngineLoad()
        self._seen = self._best = 0.0

    def see(self, load: EngineLoad) -> None:
        """Take the engine's counts at a beat. Beats with few tokens are left to gather."""
        if load.decoded < self._before.decoded:  # it was started anew
            self._before = EngineLoad()
        tokens = load.decoded - self._before.decoded
        seconds = load.decode_seconds - self._before.decode_seconds
        if tokens < 32 or seconds <= 0:
            return
        self._before = load
        self._seen += tokens
        self._best = max(self._best * 0.99, tokens / seconds)

    @property
    def tokens_per_s(self) -> float:
        """0 until enough tokens were seen."""
        return self._best if self._seen >= self.MIN_TOKENS else 0.0


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
