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

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, models, transaction
from django.utils import timezone

from jobs import accounting, counting
from jobs.models import TERMINAL, Attempt, Job, JobState


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
    jobs: Sequence[Job],
    attempts: Sequence[Attempt],
    spent: Mapping[tuple[str, int], accounting.Spent] | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Write a batch of rows from memory: insert what is new, and update what is there only if it is older
    (by `version`) and not terminal; an attempt that has its outcome keeps it. One statement for each table;
    all or nothing. What ended by it is accounted for; `spent` is what attempts (job, number) used.
    """
    spent = spent or {}
    with transaction.atomic(using=using):
        ended = _upsert(jobs, ("id",), _job_is_older(using), ("id", "state"), using)
        closed = _upsert(
            attempts, ("job_id", "number"), _attempt_is_open(using), ("job_id", "number", "outcome"), using
        )
        by_id = {job.id: job for job in jobs}
        entries = [accounting.of_job(by_id[id_]) for id_, state in ended if state in TERMINAL]
        rows = {(a.job_id, a.number): a for a in attempts}
        for job_id, number, outcome in closed:
            if outcome and job_id in by_id:
                used = spent.get((job_id, number), accounting.NOTHING)
                entries.append(accounting.of_attempt(rows[job_id, number], by_id[job_id], used))
        accounting.tell([e for e in entries if e], using)


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


def _upsert(
    rows: Sequence[models.Model], unique: tuple[str, ...], condition: str, tell: tuple[str, ...], using: str
) -> list[tuple[Any, ...]]:
    """``INSERT ... ON CONFLICT DO UPDATE ... WHERE ... RETURNING``, the same on PostgreSQL and SQLite.

    Returns the columns `tell` of those rows that were really written.

    By hand, since Django's `bulk_create(update_conflicts=True)` takes no condition.
    """
    written: list[tuple[Any, ...]] = []
    for part in _parts(rows, 200):
        connection = connections[using]
        quote = connection.ops.quote_name
        fields = [f for f in part[0]._meta.concrete_fields if not isinstance(f, models.AutoField)]
        names = [quote(str(f.column)) for f in fields]
        updates = [
            f"{n} = excluded.{n}" for n, f in zip(names, fields, strict=True) if f.column not in unique
        ]
        one = "(" + ", ".join(["%s"] * len(fields)) + ")"
        sql = (
            f"INSERT INTO {quote(part[0]._meta.db_table)} ({', '.join(names)})"  # noqa: S608 - names are ours
            f" VALUES {', '.join([one] * len(part))}"
            f" ON CONFLICT ({', '.join(quote(u) for u in unique)})"
            f" DO UPDATE SET {', '.join(updates)}{condition}"
            f" RETURNING {', '.join(quote(t) for t in tell)}"
        )
        values = [f.get_db_prep_save(getattr(row, f.attname), connection) for row in part for f in fields]
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            written += cursor.fetchall()
    return written


def _parts(rows: Sequence[models.Model], size: int) -> Iterable[Sequence[models.Model]]:
    # SQLite allows 32,766 variables in a statement; a job has about 25 columns.
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
