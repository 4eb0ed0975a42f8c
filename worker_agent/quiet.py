"""Quiet hours: when the owner keeps the machine. Pure; in the host's local time, without dates.

``Mon-Fri 09:00-18:00``, ``Sat 10:00-12:00``, ``22:00-06:00`` (every day, over midnight: it belongs to the day
on which it begins). Several are given again, or separated by commas.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ENTRY = re.compile(
    r"(?:([A-Za-z]{3})[a-z]*(?:\s*-\s*([A-Za-z]{3})[a-z]*)?\s+)?(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)"
)
_DAY, _WEEK = 24 * 60, 7 * 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` up to `end`, in minutes since Monday 00:00; `end` may lie in the week after."""

    start: int
    end: int


def parse(text: str) -> tuple[Span, ...]:
    """Raises `ValueError` with what is wrong."""
    spans: list[Span] = []
    for part in text.split(","):
        if part.strip():
            spans += _entry(part.strip())
    return tuple(spans)


def _entry(text: str) -> list[Span]:
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is not like "Mon-Fri 09:00-18:00" or "22:00-06:00"')
    first, last = _day(found[1] or "mon"), _day(found[2] or found[1] or "sun")
    start, end = _minute(found[3], found[4]), _minute(found[5], found[6])
    if start == _DAY:
        raise ValueError(f"{text!r}: a span begins before 24:00")
    length = (end - start) % _DAY or _DAY
    return [
        Span(day % 7 * _DAY + start, day % 7 * _DAY + start + length)
        for day in range(first, first + (last - first) % 7 + 1)
    ]


def _day(name: str) -> int:
    try:
        return _DAYS.index(name.lower())
    except ValueError:
        raise ValueError(f"{name!r} is not a day: {', '.join(day.capitalize() for day in _DAYS)}") from None


def _minute(hour: str, minute: str) -> int:
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > _DAY:
        raise ValueError(f"{hour}:{minute} is not a time of day")
    return found


def until(spans: Sequence[Span], now: datetime.datetime) -> datetime.datetime | None:
    """When the quiet time that covers `now` ends; None if it is not quiet. Spans that touch are one.

    A quiet time that never ends is said to end in a week.
    """
    at = _of_week(now)
    end = at
    while end < at + _WEEK:
        ends = [e for span in spans for s, e in _around(span) if s <= end < e]
        if not ends:
            break
        end = max(ends)
    return None if end == at else _start_of_minute(now) + datetime.timedelta(minutes=min(end - at, _WEEK))


def next_change(spans: Sequence[Span], now: datetime.datetime) -> datetime.datetime | None:
    """When quiet hours next begin or end; None if there are none."""
    if (end := until(spans, now)) is not None:
        return end
    at = _of_week(now)
    starts = [s for span in spans for s, _ in _around(span) if s > at]
    return _start_of_minute(now) + datetime.timedelta(minutes=min(starts) - at) if starts else None


def _around(span: Span) -> list[tuple[int, int]]:
    """The span in the week before, in this one, and in the next two."""
    return [(span.start + week * _WEEK, span.end + week * _WEEK) for week in (-1, 0, 1, 2)]


def _of_week(now: datetime.datetime) -> int:
    return now.weekday() * _DAY + now.hour * 60 + now.minute


def _start_of_minute(now: datetime.datetime) -> datetime.datetime:
    return now.replace(second=0, microsecond=0)
