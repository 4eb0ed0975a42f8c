"""What the ledger says of jobs, as plain objects: one, or a page of them. Times are seconds since the epoch.

Everything here blocks on the database but `queue_of`.
"""

from __future__ import annotations

import datetime
import re
import time
from typing import Any, Final

import msgspec
import redis
from django.db.models import Q, QuerySet
from django.utils import timezone
from msgspec import Struct

from jobs.board import Board
from jobs.models import TERMINAL, Job, JobState

_JOB_ID: Final = re.compile(r"(?:chatcmpl-|cmpl-|resp_)?([0-9a-f]{32})")
_YOUNG_SECONDS: Final = 60.0


class Reader(Struct, frozen=True):
    """Who asks. Staff sees every job, a key its own."""

    key: int
    staff: bool

    def jobs(self) -> QuerySet[Job]:
        """The jobs this reader may know of."""
        return Job.objects.all() if self.staff else Job.objects.filter(key_id=self.key)


class Wanted(Struct, frozen=True):
    """Which jobs a page shows: what is None does not matter."""

    limit: int = 20
    after: str | None = None  # a job's id: only older ones
    state: str | None = None
    model: str | None = None
    asynchronous: bool | None = None
    created_after: datetime.datetime | None = None
    created_before: datetime.datetime | None = None
    key: str | None = None  # id or name
    node: str | None = None  # id or name


def plain_id(job_id: str) -> str | None:
    """The ledger's id for a job's id or that of its answer; None for what cannot be one."""
    found = _JOB_ID.fullmatch(job_id)
    return found[1] if found else None


def is_young(job_id: str) -> bool:
    """Whether a job of this id was made a moment ago, by the time in its id (a UUIDv7): its row may still be
    on the way. Clocks of several hosts may differ a little."""
    return abs(time.time() - int(job_id[:12], 16) / 1000) < _YOUNG_SECONDS


def find(job_id: str, reader: Reader) -> Job | None:
    """A job with its attempts, if the reader may know of it."""
    rows = reader.jobs().filter(pk=job_id).select_related("key", "node")
    return rows.prefetch_related("attempts__node").first()


def ended_before(job: Job, seconds: float) -> bool:
    """Whether a job has ended, longer ago than that."""
    ended = job.state in TERMINAL and job.finished_at is not None
    return ended and (timezone.now() - job.finished_at).total_seconds() > seconds  # type: ignore[operator]


def page(wanted: Wanted, reader: Reader) -> dict[str, Any]:
    """Jobs, newest first, as a list of OpenAI's (``has_more``, ``first_id``, ``last_id``)."""
    rows = reader.jobs().filter(_matching(wanted)).order_by("-id").defer("request", "result")
    rows = rows.select_related("key", "node").prefetch_related("attempts__node")
    found = list(rows[: wanted.limit + 1])
    has_more = len(found) > wanted.limit
    shown = [summary(job, reader) for job in found[: wanted.limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }


def _matching(wanted: Wanted) -> Q:
    matching = Q()
    if wanted.after is not None:
        matching &= Q(pk__lt=wanted.after)
    for name in ("state", "model", "asynchronous"):
        if (value := getattr(wanted, name)) is not None:
            matching &= Q(**{name: value})
    if wanted.created_after is not None:
        matching &= Q(created_at__gte=wanted.created_after)
    if wanted.created_before is not None:
        matching &= Q(created_at__lt=wanted.created_before)
    if wanted.key is not None:
        number = int(wanted.key) if re.fullmatch("[0-9]{1,18}", wanted.key) else None
        matching &= Q(key_id=number) | Q(key__name=wanted.key) if number else Q(key__name=wanted.key)
    if wanted.node is not None:
        matching &= Q(node_id=wanted.node) | Q(node__name=wanted.node)
    return matching


def summary(job: Job, reader: Reader) -> dict[str, Any]:
    """A job as every page shows it."""
    answer: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "state": job.state,
        "status": job.state,  # the same by the name that OpenAI's batches and responses give it
        "model": job.model,
        "url": job.path,
        "stream": job.stream,
        "asynchronous": job.asynchronous,
        "created": _seconds(job.created_at),
        "placed": _seconds(job.placed_at),
        "first_token": _seconds(job.first_token_at),
        "finished": _seconds(job.finished_at),
        "timings_ms": _timings(job),
        "node": job.node.name if job.node else None,
        "why": job.why or None,
        "attempts": [
            {
                "number": a.number,
                "node": a.node.name if a.node else None,
                "outcome": a.outcome or None,
                "reason": a.reason or None,
                "claimed": _seconds(a.claimed_at),
                "placed": _seconds(a.placed_at),
                "finished": _seconds(a.finished_at),
            }
            for a in job.attempts.all()
        ],
        "usage": _usage(job),
        "error": {"code": job.error_code, "message": job.error_message} if job.error_code else None,
    }
    if reader.staff:
        answer["key"] = {"id": job.key_id, "name": job.key.name if job.key else None}
    return answer


def whole(job: Job, reader: Reader) -> dict[str, Any]:
    """A job with the result of an asynchronous one. Its owner's first look starts the time for which a
    result is still kept; staff looking at it does not."""
    answer = summary(job, reader)
    if job.asynchronous:
        answer["result"] = _result(bytes(job.result)) if job.result is not None else None
        # Whatever an engine answered was kept: the status says that it did.
        answer["result_dropped"] = job.http_status is not None and job.result is None
        if job.result is not None and job.result_read_at is None and job.key_id in {None, reader.key}:
            Job.objects.filter(pk=job.pk, result_read_at=None).update(result_read_at=timezone.now())
    return answer


def _result(body: bytes) -> Any:
    """What the engine answered: JSON, or the text of a refusal that was none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")


async def queue_of(job_id: str, state: str, board: Board) -> dict[str, Any] | None:
    """Where a pending job stands in its queue; None if it is in none (or the board is away)."""
    if state != JobState.PENDING:
        return None
    try:
        estimate = await board.estimate(job_id)
    except redis.RedisError:
        return None
    if estimate is None:
        return None
    position, wait = estimate
    return {"position": position, "estimated_wait_s": None if wait is None else round(wait, 1)}


def _usage(job: Job) -> dict[str, int] | None:
    if job.state != JobState.COMPLETED and not (job.prompt_tokens or job.completion_tokens):
        return None
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "total_tokens": job.prompt_tokens + job.completion_tokens,
    }


def _timings(job: Job) -> dict[str, float | None]:
    """Milliseconds from the moment the job was accepted: until a node first had it, until the first token,
    until the end."""
    placed = min((a.placed_at for a in job.attempts.all() if a.placed_at), default=job.placed_at)
    ended = job.finished_at if job.state in TERMINAL else None
    moments = {"queued": placed, "first_token": job.first_token_at, "total": ended}
    return {name: _milliseconds(job.created_at, moment) for name, moment in moments.items()}


def _milliseconds(since: datetime.datetime, moment: datetime.datetime | None) -> float | None:
    return round(max(0.0, (moment - since).total_seconds() * 1000), 1) if moment else None


def _seconds(moment: datetime.datetime | None) -> float | None:
    return round(moment.timestamp(), 3) if moment else None
