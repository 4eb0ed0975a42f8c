"""The life of a job. The only code that writes `Job.state`.

            place                 complete -> COMPLETED
    PENDING ------> RUNNING ----> fail     -> FAILED
       ^               |          cancel   -> CANCELLED
       +---------------+          expire   -> EXPIRED
            requeue

Fail, cancel and expire lead from PENDING too; a terminal state is never left. Who asks: `jobs.dispatch` for
all of them, in memory for the jobs that a web process answers (its recorder writes the rows behind), and in
the ledger for asynchronous jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.utils import timezone

from jobs import accounting, counting, upsert
from jobs.models import TERMINAL, Attempt, Job, JobState
from jobs.rows import AttemptRow, JobRow
from jobs.upsert import Target


class Move(StrEnum):
    PLACE = "place"
    REQUEUE = "requeue"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


_S = JobState
_OPEN = frozenset({_S.PENDING, _S.RUNNING})
MOVES: dict[Move, tuple[frozenset[JobState], JobState]] = {
    Move.PLACE: (frozenset({_S.PENDING}), _S.RUNNING),
    Move.REQUEUE: (frozenset({_S.RUNNING}), _S.PENDING),
    Move.COMPLETE: (frozenset({_S.RUNNING}), _S.COMPLETED),
    Move.FAIL: (_OPEN, _S.FAILED),
    Move.CANCEL: (_OPEN, _S.CANCELLED),
    Move.EXPIRE: (_OPEN, _S.EXPIRED),
}


def after(state: JobState, how: Move) -> JobState | None:
    """The state that a move leads to from `state`; None if it does not lead from there."""
    froms, to = MOVES[how]
    return to if state in froms else None


def move(job: Job, how: Move, *, outcome: str = "", **columns: Any) -> bool:
    """Move a job in the ledger if it is still as it was read (state and attempt). Returns whether it was.

    The attempt number is part of the condition, so that a late word from a lost node changes nothing.
    Attempts that are still open when their job ends (nobody heard of them again) end with it: as `outcome`
    says, else as the job did.
    """
    to = after(JobState(job.state), how)
    if to is None:
        return False
    with transaction.atomic():
        changed = Job.objects.filter(
            pk=job.pk, state=job.state, attempt_count=job.attempt_count, version=job.version
        ).update(state=to, version=job.version + 1, **columns)
        if not changed:
            return False
        job.state, job.version = to, job.version + 1
        for name, value in columns.items():
            setattr(job, name, value)
        if to in TERMINAL:
            _ended(job, outcome or job.error_code or to.value)
    counting.row_moved(job)
    return True


def _ended(job: Job, outcome: str) -> None:
    """What follows in the same transaction from a job's end."""
    now = timezone.now()
    job.attempts.filter(outcome="").update(outcome=outcome, reason=job.error_message, finished_at=now)
    entry = accounting.of_job(job)
    accounting.tell([entry] if entry else [], DEFAULT_DB_ALIAS)
    if job.asynchronous:
        for listener in accounting.on_deferred_end:
            transaction.on_commit(partial(listener, job))


def write_behind(
    jobs: Sequence[JobRow],
    attempts: Sequence[AttemptRow],
    spent: Mapping[tuple[str, int], accounting.Spent] | None = None,
    using: str = DEFAULT_DB_ALIAS,
    pause: Callable[[], None] | None = None,
) -> None:
    """Write a batch of rows from memory: insert what is new, and update what is there only if it is older
    (by `version`) and not terminal; an attempt that has its outcome keeps it. One statement for each table
    (SQLite: for a few of its rows), all or nothing. What ended by it is accounted for; `spent` is what
    attempts (job, number) used, `pause` as for `upsert.write`.
    """
    spent = spent or {}
    try:
        with transaction.atomic(using=using):
            _write(jobs, attempts, spent, using, singly=False, pause=pause)
    except upsert.NotAll:
        with transaction.atomic(using=using):
            _write(jobs, attempts, spent, using, singly=True, pause=pause)


def _write(
    jobs: Sequence[JobRow],
    attempts: Sequence[AttemptRow],
    spent: Mapping[tuple[str, int], accounting.Spent],
    using: str,
    *,
    singly: bool,
    pause: Callable[[], None] | None,
) -> None:
    how: Any = {"singly": singly, "pause": pause}
    ended = [j for j in upsert.write(_JOBS, jobs, using, **how) if j.state in TERMINAL]
    closed = [a for a in upsert.write(_ATTEMPTS, attempts, using, **how) if a.outcome]
    if not ended and not closed:
        return
    by_id = {job.id: job for job in jobs}
    used = [
        (a, by_id[a.job_id], spent.get((a.job_id, a.number), accounting.NOTHING))
        for a in closed
        if a.job_id in by_id
    ]
    accounting.tell(accounting.of_rows(ended, used), using)


def _job_is_older(using: str) -> str:
    quote = connections[using].ops.quote_name
    table, terminal = quote(Job._meta.db_table), ", ".join(f"'{s.value}'" for s in sorted(TERMINAL))
    return (
        f" WHERE {table}.{quote('version')} < excluded.{quote('version')}"
        f" AND {table}.{quote('state')} NOT IN ({terminal})"
    )


def _attempt_is_open(using: str) -> str:
    quote = connections[using].ops.quote_name
    return f" WHERE {quote(Attempt._meta.db_table)}.{quote('outcome')} = ''"


_JOBS: Final = Target(Job, ("id",), _job_is_older)
_ATTEMPTS: Final = Target(Attempt, ("job_id", "number"), _attempt_is_open)
