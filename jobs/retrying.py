"""Asking again for what a job did not bring about.

A job that has ended stays as it ended, so this is a new job: of the same key, with the same request, which
the ledger keeps of an asynchronous job that failed or expired for as long as it would have kept the result.
Taking the request out of the old row is the claim: however often it is asked for, a job is retried once.
"""

from __future__ import annotations

from django.db import transaction

from jobs import asynchronous
from jobs.interactive import Request
from jobs.models import Job, JobState

RETRIABLE = frozenset({JobState.FAILED, JobState.EXPIRED})


class NotRetried(Exception):
    """The reason, in words."""


def retry(job: Job) -> Job:
    """Make a new job of a failed one, and queue it. Returns the new job. Raises `NotRetried`.

    It counts in the key's usage and budgets, not in its limits a minute or at once: nobody's client asked.
    """
    if not job.asynchronous:
        raise NotRetried("its caller waited for it, so its request was never stored")
    if job.state not in RETRIABLE:
        raise NotRetried(f"it is {job.state}: only what failed or expired is retried")
    if job.key is None or job.key.state != "valid":
        raise NotRetried("its API key may ask for nothing any more")
    with transaction.atomic():
        kept = Job.objects.select_for_update().filter(
            pk=job.pk, state__in=RETRIABLE, asynchronous=True, request__isnull=False
        )
        body = kept.values_list("request", flat=True).first()
        if body is None or not kept.update(request=None):
            raise NotRetried("its request is not kept any more (or it was retried already)")
        again = Request(
            path=job.path,
            model=job.model,
            body=bytes(body),
            stream=False,
            key=job.key_id,
            priority=job.priority,
        )
        new = asynchronous.accept(again)
    asynchronous.queue(new)
    return new
