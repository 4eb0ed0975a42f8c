"""Lists of many rows: what they cost does not grow with the table."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from api.authentication import new_key
from jobs.admin import JobAdmin
from jobs.interactive import new_job_id
from jobs.models import Job, JobState
from nodes.backoffice.rows import Bounded
from nodes.models import NodeEvent, NodeSample
from tests.nodes.agents import enrol

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick")]

JOBS = reverse("admin:jobs_job_changelist")
QUERIES = [
    "",
    "?state=failed",
    "?since=24h",
    "?error_code=upstream_failed",
    "?model=m",
    "?p=2",
    "?q=01a2b3c4",
]


def fill(many: int) -> None:
    node, _ = enrol(name=f"node-{many}")
    key, _ = new_key(f"key-{many}")
    states = [JobState.COMPLETED, JobState.FAILED]
    Job.objects.bulk_create(
        Job(id=new_job_id(), model="m", state=states[n % 2], node=node, key=key) for n in range(many)
    )
    NodeEvent.objects.bulk_create(NodeEvent(node=node, reason="x") for _ in range(many))
    NodeSample.objects.bulk_create(NodeSample(node=node) for _ in range(many))


@pytest.mark.parametrize(
    "page", [*(JOBS + q for q in QUERIES), "/admin/nodes/nodeevent/", "/admin/nodes/nodesample/"]
)
def test_a_list_asks_the_same_of_ten_rows_and_of_three_hundred(admin_client, wire, page):
    def queries() -> list[str]:
        with CaptureQueriesContext(
            connection,
        ) as asked:
            admin_client.get(page)
        return [q["sql"] for q in asked]

    fill(60)
    few = queries()
    fill(300)
    many = queries()
    assert len(many) == len(few) <= 12, "\n".join(many)


def test_no_query_of_the_list_reads_what_was_asked_or_counts_without_end(admin_client, wire):
    fill(60)
    with CaptureQueriesContext(connection) as asked:
        admin_client.get(JOBS)
    about_jobs = [q["sql"] for q in asked if 'FROM "jobs_job"' in q["sql"]]
    assert about_jobs
    assert not [sql for sql in about_jobs if '"jobs_job"."request"' in sql or "DISTINCT" in sql]
    assert all("LIMIT" in sql for sql in about_jobs)


class UpTo100(Bounded):
    MOST = 100


class Jobs(JobAdmin):
    paginator = UpTo100


def test_counts_end_somewhere_and_the_list_says_so(admin_user, rf, wire):
    def listed() -> tuple[int, bool]:
        request = rf.get(JOBS)
        request.user = admin_user
        answer: Any = Jobs(Job, admin.site).changelist_view(request)
        page = answer.render().content.decode()
        return answer.context_data["cl"].result_count, "there are more" in page

    fill(101)
    assert listed() == (100, True)
    Job.objects.latest("pk").delete()
    assert listed() == (100, False)


def test_jobs_are_found_by_the_beginning_of_their_id_by_model_and_by_error(admin_client, wire):
    key, _ = new_key("ann")
    ids = [f"{n}" * 32 for n in range(3)]
    for n, id_ in enumerate(ids):
        Job.objects.create(id=id_, model=f"org/m{n}", key=key, error_code="queue_full" if n else "")

    def found(term: str) -> list[str]:
        page = admin_client.get(JOBS, {"q": term}).content.decode()
        return [id_ for id_ in ids if id_ in page]

    assert found("1" * 8) == [ids[1]]
    assert found(f"chatcmpl-{ids[2]}") == [ids[2]]
    assert found("org/m0") == [ids[0]]
    assert found("queue_full") == ids[1:]
    assert found("nothing") == found("%") == []


def test_jobs_since_a_while_are_found_by_their_ids(admin_client, wire):
    old = timezone.now() - datetime.timedelta(hours=2)
    before = f"{int(old.timestamp() * 1000):012x}" + "7" + "0" * 19
    Job.objects.create(id=before, model="m", created_at=old)
    new = Job.objects.create(id=new_job_id(), model="m").pk
    hour = admin_client.get(JOBS, {"since": "1h"}).content.decode()
    day = admin_client.get(JOBS, {"since": "24h"}).content.decode()
    assert (new in hour, before in hour, before in day) == (True, False, True)
