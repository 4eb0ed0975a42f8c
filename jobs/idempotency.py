"""One job for one ``Idempotency-Key``: who did not hear our 202 may ask again, and gets the same job.

The ledger keeps which job a key stands for, written in the transaction that accepts the job: there is never
the one without the other. Only keyed hashes of the key and of what was asked are kept.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Final

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from jobs import asynchronous, poison
from jobs.interactive import Request
from jobs.models import Job, Submission

_NAME: Final = "idempotency-key"


class Reused(Exception):
    """The key stands for another request."""


@dataclass(frozen=True, slots=True)
class Mark:
    """By which a request is known again: `name` for whose key it is and which, `asked` for what."""

    name: str
    asked: str


def mark(request: Request, key: str) -> Mark:
    """The mark of a request that came with this ``Idempotency-Key``. Callers do not meet in it."""
    return Mark(
        poison.fingerprint(request.tenant, _NAME, key.encode()),
        poison.fingerprint(request.tenant, request.path, request.body),
    )


def earlier(mark: Mark) -> Job | None:
    """The job that the key stands for, without its request and result. Raises `Reused`."""
    found = Submission.objects.filter(name=mark.name, created_at__gte=_oldest()).first()
    if found is None:
        return None
    if found.asked != mark.asked:
        raise Reused
    return Job.objects.defer("request", "result").filter(pk=found.job_id).first()


def accept(request: Request, mark: Mark, job_id: str, give_up_at: float = math.inf) -> tuple[Job, bool]:
    """Accept a job unless its key stands for one already: the job, and whether it is new and to be queued.

    Of several at once one wins, and all get its job. Raises `Reused`; and as `asynchronous.accept` does.
    """
    try:
        with transaction.atomic():
            Submission.objects.filter(name=mark.name, created_at__lt=_oldest()).delete()
            Submission.objects.create(name=mark.name, asked=mark.asked, job_id=job_id)
            return asynchronous.accept(request, give_up_at, job_id), True
    except IntegrityError:
        found = earlier(mark)
        if found is None:
            raise
        return found, False


def forget() -> int:
    """Drop keys whose time is over. Returns how many."""
    return Submission.objects.filter(created_at__lt=_oldest()).delete()[0]


def _oldest() -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=settings.IDEMPOTENCY_SECONDS)
