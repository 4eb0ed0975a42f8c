"""What work has cost, told exactly once to whoever keeps accounts.

Two conditional writes decide what is told: a job's row becoming terminal counts the request, and an
attempt's row becoming closed counts what the attempt used. Both happen at most once for a row, however often
a batch is written, and the listener writes in the same transaction. So an attempt that goes on after its
caller has left is counted too, when its node has stopped.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from jobs.models import Attempt, Job, JobState
from jobs.rows import AttemptRow, JobRow
from worker_agent.contract import Usage


class Spent(Struct, frozen=True, gc=False):
    """Tokens of one attempt. `estimated` if we counted them, since the engine did not come to say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


NOTHING = Spent()

_MOST_TOKENS = 1_000_000_000


def plausible(tokens: int) -> int:
    """A count that a node sent, as far as it can be true: a column must be able to hold it."""
    return min(max(0, tokens), _MOST_TOKENS)


def of_usage(usage: Usage | None) -> Spent:
    """What the engine counted."""
    if usage is None:
        return NOTHING
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if 0 <= prompt <= _MOST_TOKENS and 0 <= completion <= _MOST_TOKENS:
        return Spent(prompt, completion)
    return Spent(plausible(prompt), plausible(completion))


@dataclass(frozen=True, slots=True)
class Entry:
    """What is added for a key, a model and the day of `at`. Times in seconds."""

    key: int
    model: str
    at: datetime.datetime
    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    spent: Spent = NOTHING
    node_seconds: float = 0.0


keepers: list[Callable[[Sequence[Entry], str], None]] = []
"""Called with entries and the alias of the database, inside the transaction that made them true."""

on_deferred_end: list[Callable[[Job], None]] = []
"""Called after an asynchronous job has ended, once the ledger has it. They raise nothing."""


def tell(entries: Sequence[Entry], using: str) -> None:
    """Hand entries to the keepers. What they raise ends the transaction, so that nothing is half counted."""
    if entries:
        for keep in keepers:
            keep(entries, using)


def of_job(job: Job | JobRow) -> Entry | None:
    """The entry of a job that has just become terminal; None if it has no key."""
    if job.key_id is None:
        return None
    return Entry(
        job.key_id,
        job.model,
        job.finished_at or job.created_at,
        requests=1,
        errors=int(job.state in {JobState.FAILED, JobState.EXPIRED}),
        cancelled=int(job.state == JobState.CANCELLED),
    )


def of_attempt(attempt: Attempt | AttemptRow, job: Job | JobRow, spent: Spent) -> Entry | None:
    """The entry of an attempt that has just been closed; None if it cost nothing."""
    if job.key_id is None or attempt.finished_at is None:
        return None
    seconds = (attempt.finished_at - attempt.placed_at).total_seconds() if attempt.placed_at else 0.0
    if seconds <= 0 and not spent.total:
        return None
    return Entry(job.key_id, job.model, attempt.finished_at, spent=spent, node_seconds=max(0.0, seconds))


def of_rows(jobs: Iterable[JobRow], attempts: Iterable[tuple[AttemptRow, JobRow, Spent]]) -> list[Entry]:
    """What `of_job` says of jobs that have just become terminal and `of_attempt` of attempts that have just
    been closed, added up: a batch of hundreds is of a few keys and models, and mostly of one day."""
    counts: dict[tuple[int, str, datetime.date], list[int]] = {}
    for job in jobs:
        if job.key_id is None:
            continue
        day = (job.finished_at or job.created_at).date()
        add = counts.setdefault((job.key_id, job.model, day), [0, 0, 0])
        add[0] += 1
        if job.state != _COMPLETED:
            add[1] += job.state in _ERRORS
            add[2] += job.state == _CANCELLED
    used: dict[tuple[int, str, datetime.date, bool], list[Any]] = {}
    for attempt, job, spent in attempts:
        until, since = attempt.finished_at, attempt.placed_at
        if job.key_id is None or until is None:
            continue
        sums = used.setdefault((job.key_id, job.model, until.date(), spent.estimated), [0, 0, 0.0])
        sums[0] += spent.prompt_tokens
        sums[1] += spent.completion_tokens
        if since is not None and since < until:
            sums[2] += (until - since).total_seconds()
    entries = [
        Entry(key, model, _begin(day), requests=requests, errors=errors, cancelled=cancelled)
        for (key, model, day), (requests, errors, cancelled) in counts.items()
    ]
    for (key, model, day, estimated), (prompt, answer, seconds) in used.items():
        if prompt or answer or seconds:
            spent = Spent(prompt, answer, estimated)
            entries.append(Entry(key, model, _begin(day), spent=spent, node_seconds=seconds))
    return entries


_COMPLETED: Final = JobState.COMPLETED.value
_CANCELLED: Final = JobState.CANCELLED.value
_ERRORS: Final = frozenset({JobState.FAILED.value, JobState.EXPIRED.value})


def _begin(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC)
