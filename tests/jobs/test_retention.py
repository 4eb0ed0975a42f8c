"""What the ledger forgets, and what it keeps."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobs import asynchronous, retention
from jobs.interactive import new_job_id
from jobs.models import Attempt, Job, JobState
from tests.jobs.deferred import ago
from tests.jobs.desk import request

pytestmark = pytest.mark.django_db(transaction=True)


def finished(**columns: Any) -> Job:
    fields = {"model": "m", "state": JobState.COMPLETED, "asynchronous": True, "result": b"[]", **columns}
    job = Job.objects.create(id=new_job_id(), **fields)
    Attempt.objects.create(job=job, number=1, lease="")
    return job


def kept(job: Job) -> bool:
    return Job.objects.get(pk=job.pk).result is not None


def test_results_go_a_while_after_they_were_read_or_when_their_time_is_over(settings):
    settings.RESULT_READ_SECONDS, settings.RESULT_TTL_SECONDS = 300, 3600
    unread = finished(finished_at=ago(minutes=59))
    old = finished(finished_at=ago(minutes=61))
    just_read = finished(finished_at=ago(minutes=59), result_read_at=ago(minutes=4))
    read = finished(finished_at=ago(minutes=10), result_read_at=ago(minutes=6))
    retention.tidy()
    assert [kept(job) for job in (unread, old, just_read, read)] == [True, False, True, False]


def test_the_request_of_a_failed_job_is_kept_as_long_as_a_result_would_be(settings):
    settings.RESULT_TTL_SECONDS = 3600
    failed = {"state": JobState.FAILED, "request": b"{}", "result": None}
    young = finished(**failed, finished_at=ago(minutes=59))
    old = finished(**failed, finished_at=ago(minutes=61))
    waiting = finished(state=JobState.PENDING, request=b"{}", result=None)
    retention.tidy()
    left = {job.pk for job in Job.objects.exclude(request=None)}
    assert left == {young.pk, waiting.pk}
    assert old.pk not in left


def test_old_jobs_go_with_their_attempts_some_at_a_time():
    young = [finished(finished_at=ago(minutes=59)), Job.objects.create(id=new_job_id(), model="m")]
    oldest_first = [finished(finished_at=ago(hours=20 - n)) for n in range(5)]
    assert retention.delete_finished(ago(hours=1), at_once=2, most=4) == 4
    assert set(Job.objects.values_list("pk", flat=True)) == {j.pk for j in (*young, oldest_first[-1])}
    assert retention.delete_finished(ago(hours=1), at_once=2, most=4) == 1
    assert set(Job.objects.values_list("pk", flat=True)) == {j.pk for j in young}
    assert set(Attempt.objects.values_list("job_id", flat=True)) == {young[0].pk}


def test_a_sweep_forgets_by_the_settings(settings):
    settings.JOB_TTL_SECONDS = 3600
    finished(finished_at=ago(minutes=61))
    young = finished(finished_at=ago(minutes=59))
    retention.tidy()
    assert Job.objects.get() == young


def test_what_was_accepted_too_late_is_not_kept():
    with pytest.raises(asynchronous.TooLate):
        asynchronous.accept(request(stream=False), give_up_at=time.monotonic() - 1)
    assert Job.objects.count() == 0
    asynchronous.accept(request(stream=False), give_up_at=time.monotonic() + 60)
    assert Job.objects.count() == 1
