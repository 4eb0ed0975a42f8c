"""What the ledger forgets: prompts and results soon, finished jobs later."""

from __future__ import annotations

import datetime

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from jobs import idempotency
from jobs.lifecycle import Move, move
from jobs.models import Attempt, Job, JobState, Submission


def tidy() -> int:
    """End what has waited for longer than results are kept, drop old results and old jobs. Returns how many
    were ended. Safe to run twice at once."""
    now = timezone.now()
    too_old = now - _seconds(settings.RESULT_TTL_SECONDS)
    expired = _expire_pending(too_old)
    drop_results(too_old, read_before=now - _seconds(settings.RESULT_READ_SECONDS))
    idempotency.forget()
    delete_finished(now - _seconds(settings.JOB_TTL_SECONDS))
    return expired


def _expire_pending(created_before: datetime.datetime) -> int:
    waiting = Job.objects.filter(
        asynchronous=True, state=JobState.PENDING, created_at__lt=created_before
    ).defer("request")
    return sum(
        move(
            job,
            Move.EXPIRE,
            finished_at=timezone.now(),
            error_code="expired",
            error_message="no node took it in time",  # its request is kept for a while: see jobs.retrying
        )
        for job in waiting[:1000]
    )


def drop_results(finished_before: datetime.datetime, read_before: datetime.datetime) -> int:
    """Drop results whose time is over, and those that were read a while ago; and, when a result's time would
    be over, the requests of what failed. Returns how many results."""
    ended = Job.objects.filter(finished_at__lt=finished_before, request__isnull=False)
    ended.exclude(state__in=[JobState.PENDING, JobState.RUNNING]).update(request=None)
    over = Q(finished_at__lt=finished_before) | Q(result_read_at__lt=read_before)
    return Job.objects.filter(over, result__isnull=False).update(result=None)


def delete_finished(finished_before: datetime.datetime, *, at_once: int = 500, most: int = 5000) -> int:
    """Delete old jobs with their attempts, some at a time: one statement for a week of jobs would hold its
    locks, and SQLite's only writer, for as long. What is beyond `most` is left to the next call."""
    deleted = 0
    while deleted < most:
        old = Job.objects.filter(finished_at__lt=finished_before).order_by("finished_at")
        ids = list(old.values_list("pk", flat=True)[:at_once])
        if not ids:
            break
        Attempt.objects.filter(job_id__in=ids).delete()
        Submission.objects.filter(job_id__in=ids).delete()
        Job.objects.filter(pk__in=ids).delete()
        deleted += len(ids)
    return deleted


def _seconds(many: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=many)
