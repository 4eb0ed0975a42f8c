"""django-rq's pages in the admin: for staff, to look at."""

from __future__ import annotations

import pytest
from django.urls import NoReverseMatch, reverse

from jobs import tasks

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]


@pytest.fixture
def task(wire) -> str:
    tasks.enqueue_routing("0" * 32, 0)
    (name,) = tasks.queue("routing").job_ids
    return name


def pages(task: str) -> list[str]:
    names = ("jobs", "finished_jobs", "failed_jobs", "scheduled_jobs", "started_jobs", "workers")
    shown = [reverse(f"django_rq:{name}", args=[n]) for name in names for n in (0, 1)]
    index = reverse("django_rq:job_detail", args=[1, task])
    return [reverse("django_rq:home"), index, *shown]


def test_staff_sees_them_and_nobody_else(admin_client, client, task):
    for page in pages(task):
        assert admin_client.get(page).status_code == 200, page
        assert client.get(page).status_code == 302, page


def test_a_task_is_shown_with_what_it_is_about(admin_client, task):
    listed = admin_client.get(reverse("django_rq:jobs", args=[1])).content.decode()
    assert task in listed
    shown = admin_client.get(reverse("django_rq:job_detail", args=[1, task])).content.decode()
    assert "jobs.tasks.route(" in shown
    assert "0" * 32 in shown


def test_nothing_can_be_done_there(admin_client, task):
    for page in pages(task):
        assert admin_client.post(page).status_code == 405, page
    for name in ("clear", "requeue_all", "delete_job", "stop_job", "actions", "confirm_action"):
        with pytest.raises(NoReverseMatch):
            reverse(f"django_rq:{name}", args=[1])
    for path in ("queues/1/empty/", "queues/1/requeue-all/", f"queues/1/{task}/delete/", "queues/actions/1/"):
        assert admin_client.post(f"/admin/django-rq/{path}").status_code in {404, 405}, path
    assert tasks.queue("routing").job_ids == [task]


def test_with_redis_away_the_page_says_so(admin_client, wire):
    wire.execute_command("ACL", "SETUSER", "default", "-@list")
    try:
        answer = admin_client.get(reverse("django_rq:home"))
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert (answer.status_code, "Redis does not answer" in answer.content.decode()) == (503, True)
