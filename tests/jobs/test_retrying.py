"""What failed is asked for again: as a new job, once, while its request is kept."""

from __future__ import annotations

import pytest
from django.utils import timezone

from api.authentication import new_key, revoke
from jobs import retrying
from jobs.models import Job, JobState
from tests.jobs.deferred import a_node, inbox, route, submit

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def failed(wire) -> Job:
    """A job that no node could be found for, of a key."""
    key, _ = new_key("ann")
    job = submit(key=key.pk, priority=-7, model="nobody-has-it")
    a_node(wire)
    assert route(job) == "refused: unknown_model"
    return Job.objects.get(pk=job.pk)


def test_a_failed_job_becomes_a_new_one_that_runs(failed, wire):
    Job.objects.filter(pk=failed.pk).update(model="m")  # as if a node offered it by now
    failed.refresh_from_db()
    new = retrying.retry(failed)
    assert (new.state, new.key_id, new.priority, new.path) == (
        JobState.PENDING,
        failed.key_id,
        -7,
        failed.path,
    )
    assert bytes(new.request or b"") == b'{"model":"m","messages":[]}'
    assert new.pk in str(wire.lrange("rq:queue:routing", 0, -1))
    node = a_node(wire, "other")
    route(new)
    assert [w.job for w in inbox(wire, node)] in ([new.pk], [])
    failed.refresh_from_db()
    assert (failed.state, failed.request) == (JobState.FAILED, None)


def test_it_is_retried_once(failed):
    retrying.retry(failed)
    with pytest.raises(retrying.NotRetried, match="retried already"):
        retrying.retry(failed)
    assert Job.objects.count() == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": JobState.COMPLETED}, "only what failed"),
        ({"state": JobState.CANCELLED}, "only what failed"),
        ({"state": JobState.RUNNING}, "only what failed"),
        ({"asynchronous": False}, "never stored"),
        ({"request": None}, "not kept"),
        ({"key_id": None}, "its API key"),
    ],
)
def test_what_is_not_retried_says_why(failed, changes, why):
    for name, value in changes.items():
        setattr(failed, name, value)
    Job.objects.bulk_update([failed], list(changes))
    with pytest.raises(retrying.NotRetried, match=why):
        retrying.retry(Job.objects.get(pk=failed.pk))
    assert Job.objects.count() == 1


def test_a_revoked_key_gets_nothing_more(failed):
    revoke(failed.key)
    failed.refresh_from_db()
    with pytest.raises(retrying.NotRetried, match="its API key"):
        retrying.retry(failed)
    assert Job.objects.get(pk=failed.pk).request is not None
    assert failed.key.revoked_at <= timezone.now()
