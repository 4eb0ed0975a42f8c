"""What an engine's log says to a person: how far a load is, and why it failed. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PREFIX = re.compile(
    r"^(\(\w+(?: pid=\d+)?\)\s*)*((DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+)?"
    r"(\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\s+)?(\[[\w./-]+:\d+\]\s*)?"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_INFO = re.compile(r"\bINFO\b")
_PERCENT = re.compile(r"(\d{1,3})%")
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b: ?.+")
_STEPS = tuple(
    (re.compile(pattern), step)
    for pattern, step in (
        (r"Application startup complete|Starting vLLM server", "opening its port"),
        (r"Capturing CUDA graphs?.*?(\d+)%", "capturing CUDA graphs, {0} %"),
        (r"[Cc]apturing CUDA graph", "capturing CUDA graphs"),
        (r"init engine|KV cache size", "making the KV cache"),
        (r"torch\.compile takes|Dynamo bytecode|Compiling a graph", "compiling"),
        (r"(?:Loading weights|Model loading) took", "weights are loaded"),
        (r"Loading \S+ checkpoint shards:\s+(\d+)%", "loading weights, {0} %"),
        (r"Starting to load model", "loading weights"),
        (r"(?:Fetching|Downloading)\b.*?(\d+)%", "downloading, {0} %"),
        (r"\bDownloading\b|Time spent downloading", "downloading"),
        (r"Initializing a V1 LLM engine", "starting its workers"),
        (r"Resolved architecture|Using max model len", "starting its core"),
        (r"vLLM API server version|non-default args", "reading the model's configuration"),
    )
)
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|No available memory for the cache"
    r"|([Ff]ree|[Aa]vailable) memory on (device|node) .* is less than"
    r"|larger than the available KV cache memory"
    r"|[Nn]ot enough memory|insufficient memory",
)
_GENERIC = ("Engine core initialization failed", "Engine process failed to start", "EngineDeadError")


def _clean(line: str) -> str:
    """Without colours, carriage returns and the logger's prefix."""
    return _PREFIX.sub("", _COLOUR.sub("", line.rsplit("\r", 1)[-1]).strip()).strip()


def hint(lines: Sequence[str]) -> str:
    """Which step of its start an engine is at, as far as its log tells; else the last news it had."""
    for line in reversed(lines):
        for pattern, step in _STEPS:
            if found := pattern.search(line):
                return step.format(*found.groups())
    said = (_clean(line) for line in reversed(lines) if _INFO.search(line))
    return next((text for text in said if text), "starting Python")[:120]


def progress(lines: Sequence[str]) -> float:
    """Share of the current step that is done, from a percentage in the last lines; 0 if there is none."""
    for line in reversed(lines[-3:]):
        if found := _PERCENT.findall(line):
            return min(1.0, int(found[-1]) / 100)
    return 0.0


def out_of_memory(lines: Sequence[str]) -> bool:
    """Whether an engine ended for want of memory: loading the same again cannot help until some is freed."""
    return any(_NO_MEMORY.search(line) for line in lines)


def reason(lines: Sequence[str]) -> str:
    """Why a load failed: the last error that says something, else the last line.

    An engine ends with errors about its errors ("see root cause above"); those are passed over.
    """
    last = next((text for text in map(_clean, reversed(lines)) if text), "it printed nothing")
    return last_error(lines) or last[:500]


def last_error(lines: Sequence[str]) -> str:
    """The last error that says something; empty if there is none."""
    for text in map(_clean, reversed(lines)):
        if _ERROR.match(text) and not any(generic in text for generic in _GENERIC):
            return text[:500]
    return ""
