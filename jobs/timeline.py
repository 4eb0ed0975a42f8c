"""A job's life as a picture: a bar for each attempt, and every moment with its distance from the first."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.models import TERMINAL, Attempt, Job, JobState

WAITING: Final = "waiting"
STARTING: Final = "until the first token"
ANSWERING: Final = "answering"
LOST: Final = "lost"
_LEAST_PERCENT: Final = 0.6  # what is shorter could not be seen
_GOOD: Final = frozenset({"", "done"})


@dataclass(frozen=True)
class Part:
    """A piece of a bar: where it begins and how wide it is, in percent of the whole; how long it took."""

    kind: str
    left: float
    width: float
    seconds: float


@dataclass(frozen=True)
class Lane:
    """One attempt."""

    title: str
    node: str
    outcome: str
    reason: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Moment:
    """Something that happened, and how many seconds after the job was accepted."""

    at: datetime.datetime
    after: float
    what: str


@dataclass(frozen=True)
class Timeline:
    seconds: float
    lanes: tuple[Lane, ...]
    moments: tuple[Moment, ...]


def of(job: Job, attempts: Sequence[Attempt], now: datetime.datetime) -> Timeline:
    """What is known of a job, up to `now` if it has not ended."""
    ended = job.finished_at if job.state in TERMINAL else None
    known = [job.created_at, ended or now, *(a.finished_at for a in attempts if a.finished_at)]
    whole = max((max(known) - job.created_at).total_seconds(), 1e-3)
    lanes, since = [], job.created_at
    for attempt in attempts:
        last = attempt.number == attempts[-1].number
        lanes.append(_lane(job, attempt, since, ended or now, last, whole))
        since = attempt.finished_at or since
    if not attempts:
        part = _part(WAITING, job, job.created_at, ended or now, whole)
        lanes.append(Lane("not placed", "", job.state, job.error_message, (part,)))
    return Timeline(whole, tuple(lanes), _moments(job, attempts, ended))


def _lane(
    job: Job,
    attempt: Attempt,
    since: datetime.datetime,
    until: datetime.datetime,
    last: bool,
    whole: float,
) -> Lane:
    end = attempt.finished_at or until
    placed = attempt.placed_at
    first = job.first_token_at if last and placed and job.first_token_at else None
    parts = [_part(WAITING, job, since, placed or end, whole)]
    if placed and first and placed <= first <= end:
        parts += [_part(STARTING, job, placed, first, whole), _part(ANSWERING, job, first, end, whole)]
    elif placed:
        kind = STARTING if attempt.outcome in _GOOD else LOST
        parts.append(_part(kind, job, placed, end, whole))
    node = attempt.node.name if attempt.node else ""
    shown = tuple(p for p in parts if p.seconds > 0)
    return Lane(f"attempt {attempt.number}", node, attempt.outcome or "under way", attempt.reason, shown)


def _part(kind: str, job: Job, start: datetime.datetime, end: datetime.datetime, whole: float) -> Part:
    seconds = max(0.0, (end - start).total_seconds())
    left = min(100.0, max(0.0, (start - job.created_at).total_seconds() / whole * 100))
    width = min(max(seconds / whole * 100, _LEAST_PERCENT), 100.0 - left) if seconds else 0.0
    return Part(kind, round(left, 2), round(max(0.0, width), 2), seconds)


def _moments(job: Job, attempts: Sequence[Attempt], ended: datetime.datetime | None) -> tuple[Moment, ...]:
    found = [(job.created_at, "accepted")]
    for attempt in attempts:
        where = f" on {attempt.node.name}" if attempt.node else ""
        if attempt.placed_at:
            found.append((attempt.placed_at, f"attempt {attempt.number} placed{where}"))
        if attempt.finished_at and attempt.outcome not in _GOOD:
            found.append((attempt.finished_at, f"attempt {attempt.number} ended: {attempt.outcome}"))
    if job.first_token_at:
        found.append((job.first_token_at, "first token"))
    if ended:
        code = f" ({job.error_code})" if job.error_code else ""
        found.append((ended, f"{JobState(job.state).label}{code}"))
    order = sorted(found, key=lambda pair: pair[0])
    return tuple(Moment(at, (at - job.created_at).total_seconds(), what) for at, what in order)
