"""Batches: a file of requests becomes asynchronous jobs, some at a time, and their answers become files.

    validating --> in_progress --> finalizing --> completed | expired
        |               |
        +---------------+--> cancelling --> cancelled
        +--> failed

`turn` is the one thing that moves a batch on: a django-rq task, every second. Each step is one transaction
that begins with a conditional write on the batch's row (`_step`), so a turn may run twice, also at once, and
end anywhere: a line is read once, its answer is written once. Jobs are what `POST /jobs` makes, in the ledger
before they are queued; those whose queueing was lost are found by the sweep.

What only the door knows (may this key ask for that, how is a failure told) is given by it: `Rules`.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.utils import timezone
from msgspec import structs

from gputorrent.redis import Pipe, piped
from jobs import asynchronous, batch_lines, cancelling, counting, files, lull
from jobs.batch_lines import Line, Problem
from jobs.board import Board
from jobs.errors import Cancelled
from jobs.interactive import Request, new_job_id
from jobs.models import BATCH_ENDS, TERMINAL, Batch, BatchLine, BatchStatus, Job, JobState, StoredFile

log = logging.getLogger(__name__)

PRIORITY: Final = -50
"""Behind everything else that waits, so that batches have what is idle."""
_MOST_PROBLEMS = 100
_BATCHES_IN_FULL = 4  # with more of them open, each has less under way: the queues are everybody's
_LINES_A_TURN = 2000
_BYTES_A_TURN = 32 * 1024 * 1024
_S = BatchStatus
_WHY: Final = {
    _S.EXPIRED: ("batch_expired", "The request was not executed before the completion window ended."),
    _S.CANCELLED: ("batch_cancelled", "The request was not executed before the batch was cancelled."),
}
"""What is said of lines that were never answered, by what the batch ends as."""


class LineRefused(Exception):
    """The request in a line would not be taken at the front door: status, and body in OpenAI's shape."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Rules:
    """What the door knows. `check` (path, body, key) gives the request or raises `LineRefused`; `refusal`
    gives status and body for a job that failed; `may_go_on` is False for a key that may ask for nothing any
    more; `may_spend` is False while a budget of the key is used up."""

    check: Callable[[str, bytes, int], Request]
    refusal: Callable[[Job], tuple[int, dict[str, Any]]]
    may_go_on: Callable[[int], bool]
    may_spend: Callable[[int], bool]


_rules: list[Rules] = []


def use(rules: Rules) -> None:
    """Set the rules of this process, once, when it starts."""
    _rules[:] = [rules]


class _Moved(Exception):
    """Somebody else has moved the batch: what was read of it is old."""


# -- what callers ask ----------------------------------------------------------------------------------


def create(
    key: int, input_file: str, endpoint: str, metadata: dict[str, str], output_seconds: int = 0
) -> Batch:
    """A new batch over a complete file. It is validated with the next turn. What it writes is kept for
    `output_seconds` after its end, where that is less than for any file (0: as any)."""
    expires_at = timezone.now() + _seconds(settings.BATCH_WINDOW_SECONDS)
    batch = Batch.objects.create(
        id=f"batch_{new_job_id()}",
        key_id=key,
        input_file=input_file,
        endpoint=endpoint,
        metadata=metadata,
        output_seconds=output_seconds,
        expires_at=expires_at,
    )
    transaction.on_commit(lull.over)
    return batch


def open_of(key: int) -> int:
    """How many batches of a key have not ended."""
    return Batch.objects.filter(key_id=key).exclude(status__in=BATCH_ENDS).count()


def cancel(batch: Batch) -> bool:
    """Ask for the end of a batch. The next turn stops what is under way. False if it has ended, or is about
    to; asked again, nothing changes."""
    while batch.status not in BATCH_ENDS and batch.status != _S.FINALIZING:
        if batch.status == _S.CANCELLING:
            return True
        try:
            _step(batch, status=_S.CANCELLING, ends_as=_S.CANCELLED, cancelling_at=timezone.now())
        except _Moved:
            batch.refresh_from_db()
    return batch.status == _S.CANCELLING


# -- what moves them -----------------------------------------------------------------------------------


async def turn() -> dict[str, int]:
    """Move each open batch on by one step of each kind. Safe to run twice at once.

    Raises `redis.RedisError`, and what the database raises.
    """
    done = {"sent": 0, "answered": 0, "ended": 0}
    found = await sync_to_async(_open)()
    if not found:
        return done
    share = max(1, _BATCHES_IN_FULL * settings.BATCH_UNDER_WAY // len(found))
    async with piped() as pipe:
        for batch in found:
            try:
                await _advance(batch, share, Board(pipe), pipe, done)
            except _Moved:
                continue  # whoever moved it goes on with it
            except (DatabaseError, InterfaceError, redis.RedisError):
                raise
            except Exception:  # one batch that cannot go on must not hold up the others
                log.exception("batch cannot be moved on batch=%s", batch.id)
    return done


def _open() -> list[Batch]:
    return list(Batch.objects.exclude(status__in=BATCH_ENDS).order_by("id"))


async def _advance(batch: Batch, share: int, board: Board, pipe: Pipe, done: dict[str, int]) -> None:
    if batch.status == _S.VALIDATING:
        await sync_to_async(_validate)(batch)
    if batch.status == _S.IN_PROGRESS:
        done["answered"] += await sync_to_async(_collect)(batch)
        await sync_to_async(_look_at_the_clock)(batch)
    if batch.status == _S.IN_PROGRESS:
        jobs = await sync_to_async(_send)(batch, share)
        for job in jobs:
            await sync_to_async(asynchronous.queue)(job)
        done["sent"] += len(jobs)
    elif batch.ends_as in _WHY:
        for job_id in await sync_to_async(_under_way)(batch):
            await cancelling.end(board, pipe, job_id, Cancelled("its batch has ended"))
        done["answered"] += await sync_to_async(_collect)(batch)
        await sync_to_async(_give_up)(batch)
    done["ended"] += await sync_to_async(_end)(batch)


def _validate(batch: Batch) -> None:
    """Look at the form of every line. What stands in the bodies is looked at when they are sent."""
    problems: list[Problem] = []
    total, number, seen = 0, 0, set[str]()
    try:
        for number, (_, text) in enumerate(files.lines(batch.input_file), start=1):
            if len(problems) >= _MOST_PROBLEMS:
                break
            found = _line(batch, number, text)
            if found is None:
                continue
            total += 1
            if isinstance(found, Line) and found.custom_id in seen:
                said = "The 'custom_id' stands in an earlier line."
                found = Problem("duplicate_custom_id", said, number, "custom_id")
            if isinstance(found, Problem):
                problems.append(found)
            elif total > settings.BATCH_LINES:
                said = f"A batch may have {settings.BATCH_LINES} requests."
                problems.append(Problem("too_many_lines", said, number))
                break
            else:
                seen.add(found.custom_id)
    except files.LineTooLong as e:
        problems.append(Problem("invalid_json", str(e), number + 1))
    if not total and not problems:
        problems.append(Problem("empty_file", "The input file has no requests."))
    now = timezone.now()
    if problems:
        said_of = [{name: getattr(p, name) for name in Problem.__struct_fields__} for p in problems]
        _step(batch, status=_S.FAILED, errors=said_of, ended_at=now)
    else:
        _step(batch, status=_S.IN_PROGRESS, total=total, in_progress_at=now)


def _line(batch: Batch, number: int, text: bytes) -> Line | Problem | None:
    text = text.removeprefix(batch_lines.BOM) if number == 1 else text
    return batch_lines.read(number, text, batch.endpoint) if text.strip() else None


def _look_at_the_clock(batch: Batch) -> None:
    """End a batch whose time is over, or whose key is dead."""
    now = timezone.now()
    if batch.key_id is None or not _rules[0].may_go_on(batch.key_id):
        said = {"code": "invalid_api_key", "message": "The API key was revoked, or has expired."}
        problem = {**said, "line": None, "param": None}
        _step(batch, status=_S.CANCELLING, ends_as=_S.CANCELLED, cancelling_at=now, errors=[problem])
    elif batch.expires_at <= now:
        _step(batch, status=_S.FINALIZING, ends_as=_S.EXPIRED, finalizing_at=now)


def _send(batch: Batch, share: int) -> list[Job]:
    """Make jobs of the next lines, as many as there is room for; `share` of all that may be under way. They
    are still to be queued."""
    room = min(settings.BATCH_UNDER_WAY, share) - batch.lines.count()
    key = batch.key_id
    if room <= 0 or key is None or not _rules[0].may_spend(key):
        return []
    wanted: list[tuple[int, Line, Request]] = []
    refused: list[bytes] = []
    size, offset, number = 0, batch.read_bytes, batch.read_lines
    for offset, text in islice(files.lines(batch.input_file, batch.read_bytes), _LINES_A_TURN):  # noqa: B007
        number, size = number + 1, size + len(text)
        found = _line(batch, number, text)
        if isinstance(found, Line):
            try:
                wanted.append((number, found, _rules[0].check(found.url, bytes(found.body), key)))
            except LineRefused as e:
                said = batch_lines.refusal(new_job_id(), found.custom_id, number, e.status, e.body)
                refused.append(said)
        if len(wanted) >= room or size > _BYTES_A_TURN:
            break
    if offset == batch.read_bytes:
        return []
    with transaction.atomic():
        _step(batch, read_bytes=offset, read_lines=number, failed=batch.failed + len(refused))
        counting.lines_over(batch, {"refused": len(refused)})
        _write(batch, "error_file", refused)
        jobs = []
        for _, _, request in wanted:
            jobs.append(asynchronous.accept(structs.replace(request, priority=_priority(request))))
        BatchLine.objects.bulk_create(
            BatchLine(batch=batch, number=number, custom_id=line.custom_id, job_id=job.id)
            for (number, line, _), job in zip(wanted, jobs, strict=True)
        )
    return jobs


def _priority(request: Request) -> int:
    return max(-100, PRIORITY + min(0, request.priority))


def _under_way(batch: Batch) -> list[str]:
    return list(batch.lines.values_list("job_id", flat=True))


def _collect(batch: Batch) -> int:
    """Write the answers of jobs that have ended into the files, and drop them where they were. Returns how
    many there were."""
    lines = {line.job_id: line for line in batch.lines.all()}
    kept = Job.objects.filter(pk__in=list(lines)).defer("request")
    jobs = {job.id: job for job in kept.filter(state__in=TERMINAL)}
    gone = lines.keys() - set(kept.values_list("pk", flat=True)) - jobs.keys()
    if not jobs and not gone:
        return 0
    good = [lines[id_] for id_, job in jobs.items() if _is_answered(job)]
    bad = [lines[id_] for id_ in [*jobs, *gone] if id_ in gone or not _is_answered(jobs[id_])]
    answers = [
        batch_lines.answer(line.job_id, line.custom_id, 200, bytes(jobs[line.job_id].result or b""))
        for line in good
    ]
    failures = [_failure(batch, line, jobs.get(line.job_id)) for line in bad]
    with transaction.atomic():
        _step(
            batch,
            completed=batch.completed + len(good),
            failed=batch.failed + len(bad),
            prompt_tokens=batch.prompt_tokens + sum(job.prompt_tokens for job in jobs.values()),
            completion_tokens=batch.completion_tokens + sum(job.completion_tokens for job in jobs.values()),
        )
        counting.lines_over(
            batch, {"completed": len(good), **Counter(_outcome(batch, line, jobs) for line in bad)}
        )
        _write(batch, "output_file", answers)
        _write(batch, "error_file", failures)
        BatchLine.objects.filter(pk__in=[line.pk for line in (*good, *bad)]).delete()
        kept = Job.objects.filter(pk__in=list(jobs)).exclude(request=None, result=None)
        kept.update(request=None, result=None)  # the batch's own file has the request
    return len(good) + len(bad)


def _is_answered(job: Job) -> bool:
    return job.state == JobState.COMPLETED and job.result is not None


def _outcome(batch: Batch, line: BatchLine, jobs: Mapping[str, Job]) -> str:
    """What a line without an answer is counted as: failed, or what its batch ends as."""
    job = jobs.get(line.job_id)
    over = batch.ends_as in _WHY and (job is None or job.state != JobState.FAILED)
    return batch.ends_as if over else "failed"


def _failure(batch: Batch, line: BatchLine, job: Job | None) -> bytes:
    why = _WHY.get(BatchStatus(batch.ends_as)) if batch.ends_as else None
    if job is None or job.state == JobState.COMPLETED:
        why = ("result_dropped", "The answer was dropped before it was taken into the batch.")
    elif job.state == JobState.EXPIRED:
        why = _WHY[_S.EXPIRED]
    if job is not None and (why is None or job.state == JobState.FAILED):
        return batch_lines.refusal(line.job_id, line.custom_id, line.number, *_rules[0].refusal(job))
    assert why
    return batch_lines.never_done(line.job_id, line.custom_id, line.number, *why)


def _give_up(batch: Batch) -> None:
    """Write the next lines that were never sent into the error file."""
    why = _WHY[BatchStatus(batch.ends_as)]
    offset, number, failures = batch.read_bytes, batch.read_lines, []
    for offset, text in islice(files.lines(batch.input_file, batch.read_bytes), _LINES_A_TURN):  # noqa: B007
        number += 1
        found = _line(batch, number, text)
        if isinstance(found, Line):
            failures.append(batch_lines.never_done(new_job_id(), found.custom_id, number, *why))
    if offset != batch.read_bytes and batch.in_progress_at:
        with transaction.atomic():
            _step(batch, read_bytes=offset, read_lines=number, failed=batch.failed + len(failures))
            counting.lines_over(batch, {batch.ends_as: len(failures)})
            _write(batch, "error_file", failures)


def _end(batch: Batch) -> int:
    """End a batch of which nothing is left to do. Returns 1 if that is so."""
    if batch.status in BATCH_ENDS:
        return 1
    if batch.lines.exists():
        return 0
    if batch.in_progress_at and files.read(batch.input_file, batch.read_bytes):
        return 0
    now = timezone.now()
    if batch.status == _S.IN_PROGRESS:
        _step(batch, status=_S.FINALIZING, ends_as=_S.COMPLETED, finalizing_at=now)
    with transaction.atomic():
        _step(batch, status=BatchStatus(batch.ends_as), ended_at=now)
        for file in StoredFile.objects.filter(pk__in=[batch.output_file, batch.error_file]):
            files.complete(file, now + _seconds(batch.output_seconds) if batch.output_seconds else None)
    return 1


# -- writes --------------------------------------------------------------------------------------------


def _step(batch: Batch, **columns: Any) -> None:
    """Change a batch if it is still as it was read. Raises `_Moved` if it is not."""
    rows = Batch.objects.filter(pk=batch.pk, version=batch.version)
    if not rows.update(version=batch.version + 1, **columns):
        raise _Moved
    batch.version += 1
    for name, value in columns.items():
        setattr(batch, name, value)


def _write(batch: Batch, column: str, lines: Sequence[bytes]) -> None:
    """Add lines to one of the batch's files, which is made with the first. In the transaction of a step,
    whose write on the batch keeps others away."""
    if not lines:
        return
    if file_id := getattr(batch, column):
        file = StoredFile.objects.get(pk=file_id)
    else:
        name = f"{batch.id}_{column.removesuffix('_file')}.jsonl"
        file = files.begin(batch.key_id, name, files.BATCH_OUTPUT)
        Batch.objects.filter(pk=batch.pk).update(**{column: file.id})
        setattr(batch, column, file.id)
    files.append(file, b"".join(lines))


def _seconds(many: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=many)
