"""How each figure is measured. A scenario puts one kind of load on one target and returns what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.speed import wrk
from benchmarks.speed.gateways import MODEL, Target
from gputorrent.environments import ROOT

Seen = dict[str, float]
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a careful assistant."},
        {"role": "user", "content": "Say the word token sixteen times, please."},
    ],
    "max_tokens": 16,
}


class Broken(RuntimeError):
    """A run had errors: its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load, for about so many seconds."""

    name: str
    run: Callable[[Target, float], Seen]
    seconds: float
    ours: bool = False  # it says something of our coordinator only


def _whole(target: Target, seconds: float, connections: int, body: dict[str, Any] = CHAT) -> wrk.Seen:
    seen = wrk.run(target.port, target.key, body, connections=connections, seconds=seconds)
    if seen.errors:
        raise Broken(f"{target.name}: {seen.errors} errors at {connections} connections")
    return seen


def one(target: Target, seconds: float) -> Seen:
    """One request at a time, answered at once."""
    cpu = _Cpu(target)
    seen = _whole(target, seconds, 1)
    return {
        "one_p50_ms": seen.p50_ms,
        "one_p99_ms": seen.p99_ms,
        **cpu.each("one", seen.per_second * seconds),
    }


def sixty_four(target: Target, seconds: float) -> Seen:
    """64 connections, answered at once: requests a second, and CPU a request."""
    cpu = _Cpu(target)
    seen = _whole(target, seconds, 64)
    return {
        "rps_64": seen.per_second,
        "rps_64_p50_ms": seen.p50_ms,
        **cpu.each("rps_64", seen.per_second * seconds),
    }


def slow_engine(target: Target, seconds: float) -> Seen:
    """256 at once on an engine that takes 50 ms."""
    return {"slow_p50_ms": _whole(target, seconds, 256, {**CHAT, "user": "delay_ms=50"}).p50_ms}


def long_prompts(target: Target, seconds: float) -> Seen:
    """Prompts of 200 KB, 16 at once."""
    text = "All work and no play makes a long prompt. " * (200_000 // 42)
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    cpu = _Cpu(target)
    seen = _whole(target, seconds, 16, body)
    return {"long_rps": seen.per_second, **cpu.each("long", seen.per_second * seconds)}


def one_stream(target: Target, seconds: float) -> Seen:
    """One stream after the other, of 20 tokens at 500 a second."""
    seen = streams(target, seconds, "--streams", 1, "--tokens", 20, "--per-second", 500)
    return {"stream_ttft_ms": seen["ttft_p50_ms"]}


def many_streams(target: Target, seconds: float) -> Seen:
    """64 connections with streams of 50 tokens at 100 a second, begun at random moments."""
    seen = streams(target, seconds, "--streams", 64, "--tokens", 50, "--per-second", 100, "--jitter", 0.5)
    return {"ttft_64_p50_ms": seen["ttft_p50_ms"], "ttft_64_p99_ms": seen["ttft_p99_ms"]}


def sixty_four_paced(target: Target, seconds: float) -> Seen:
    """64 streams at 50 tokens a second: what the agent takes for a token."""
    cpu = _Cpu(target)
    seen = _long_streams(target, seconds, 64)
    return {f"{name}_64": value for name, value in cpu.each("token", seen["tokens"]).items()}


def full(target: Target, seconds: float) -> Seen:
    """256 streams at 50 tokens a second each."""
    cpu = _Cpu(target)
    seen = _long_streams(target, seconds, 256)
    found = {"tokens_per_s": seen["tokens_per_s"], "gap_p99_ms": seen["gap_p99_ms"]}
    return {**found, **cpu.each("token", seen["tokens"]), "rss_mb": target.gateway.rss_mb()}


def _long_streams(target: Target, seconds: float, count: int) -> Seen:
    tokens = max(50, round(50 * seconds))
    return streams(
        target, 0, "--streams", count, "--tokens", tokens, "--per-second", 50, "--once", "--jitter", 0.2
    )


def streams(target: Target, seconds: float, *flags: object) -> Seen:
    """The load generator for streams, as a process of its own. Raises `Broken`."""
    command = [sys.executable, "-m", "benchmarks.speed.streams", "--port", target.port, "--model", MODEL]
    command += ["--key", target.key, "--seconds", seconds, *flags]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Broken(
            f"{target.name}: {' '.join(map(str, flags))}: {(done.stdout or done.stderr).strip()[-400:]}"
        )
    found: Seen = json.loads(done.stdout)
    return found


class _Cpu:
    """What a target's processes use from here on."""

    def __init__(self, target: Target) -> None:
        self._parts = target.parts
        self._before = {name: group.cpu_seconds() for name, group in target.parts.items()}

    def each(self, name: str, count: float) -> Seen:
        """us of each part for one of `count` requests or tokens."""
        used = {part: group.cpu_seconds() - self._before[part] for part, group in self._parts.items()}
        return {f"{name}_cpu_{part}": 1e6 * seconds / max(1.0, count) for part, seconds in used.items()}


SCENARIOS = [
    Scenario("1 request", one, 3),
    Scenario("64 at once", sixty_four, 4),
    Scenario("50 ms engine, 256 at once", slow_engine, 4),
    Scenario("prompts of 200 KB", long_prompts, 3),
    Scenario("1 stream", one_stream, 3),
    Scenario("64 streams", many_streams, 5),
    Scenario("64 streams, paced", sixty_four_paced, 5),
    Scenario("256 streams, paced", full, 6),
]
