"""What an engine's log says to a person: how far a load is, and why it failed. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PREFIX = re.compile(
    r"^(\(\w+(?: pid=\d+)?\)\s*)*((DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+)?"
    r"(\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\s+)?(\[[\w./-]+:\d+\]\s*)?"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PERCENT = re.compile(r"(\d{1,3})%")
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b: ?.+")
_GENERIC = ("Engine core initialization failed", "Engine process failed to start", "EngineDeadError")


def _clean(line: str) -> str:
    """Without colours, carriage returns and the logger's prefix."""
    return _PREFIX.sub("", _COLOUR.sub("", line.rsplit("\r", 1)[-1]).strip()).strip()


def hint(lines: Sequence[str]) -> str:
    """The last thing the engine said, short."""
    for line in reversed(lines):
        if text := _clean(line):
            return text[:120]
    return ""


def progress(lines: Sequence[str]) -> float:
    """Share of the current step that is done, from a percentage in the last lines; 0 if there is none."""
    for line in reversed(lines[-3:]):
        if found := _PERCENT.findall(line):
            return min(1.0, int(found[-1]) / 100)
    return 0.0


def reason(lines: Sequence[str]) -> str:
    """Why a load failed: the last error that says something, else the last line.

    An engine ends with errors about its errors ("see root cause above"); those are passed over.
    """
    cleaned = [text for text in map(_clean, lines) if text]
    for text in reversed(cleaned):
        if _ERROR.match(text) and not any(generic in text for generic in _GENERIC):
            return text[:500]
    return cleaned[-1][:500] if cleaned else "it printed nothing"
