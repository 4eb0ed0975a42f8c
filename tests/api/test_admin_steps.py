"""Steps in the admin: asked about, taken by who may, noted with who it was, refused in words."""

from __future__ import annotations

import asyncio
import re

import pytest
from asgiref.sync import sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse

from api.authentication import new_key
from api.models import ApiKey
from jobs.models import Job, JobState
from nodes.models import EnrolmentToken, Node, NodeModel
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode
from tests.nodes.agents import enrol, restart
from worker_agent.contract import Cancel, control_key

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def step(row, name: str) -> str:
    meta = row._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_step", args=[row.pk, name])


@pytest.fixture
def node(db, wire) -> Node:
    row, answer = enrol(name="lab")
    restart(answer, name="lab")
    row.refresh_from_db()
    return row


@pytest.fixture
def viewer(db) -> Client:
    """Somebody who may look at everything."""
    user = get_user_model().objects.create_user("viewer", password="p", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client = Client()
    client.force_login(user)
    return client


def test_asking_names_the_rows_and_does_nothing(admin_client, node):
    page = admin_client.get(step(node, "revoke")).content.decode()
    assert "lab" in page
    assert "for good" in page
    listed = admin_client.post(
        reverse("admin:nodes_node_changelist"), {"action": "revoke", "_selected_action": [node.pk]}
    ).content.decode()
    assert "for good" in listed
    assert f'value="{node.pk}"' in listed
    assert Node.objects.get().state == "online"
    assert not LogEntry.objects.exists()


def test_a_post_from_a_rows_page_does_it(admin_client, admin_user, node):
    answer = admin_client.post(step(node, "drain"), follow=True)
    assert "Draining: lab" in answer.content.decode()
    assert Node.objects.get().state == "draining"
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (admin_user, node.pk, "Draining")
    buttons = answer.content.decode()
    assert step(node, "resume") in buttons
    assert step(node, "drain") not in buttons


def test_without_a_token_of_the_form_nothing_happens(admin_user, node):
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(admin_user)
    assert careful.post(step(node, "drain")).status_code == 403
    assert Node.objects.get().state == "online"


def test_who_may_only_look_is_offered_nothing_and_may_do_nothing(viewer, node):
    page = viewer.get(reverse("admin:nodes_node_change", args=[node.pk])).content.decode()
    assert "/step/" not in page
    key, _ = new_key("ann")
    for row, name in (
        (node, "drain"),
        (node.models.first(), "unload"),
        (key, "rotate_keys"),
        (key, "revoke_keys"),
    ):
        assert viewer.get(step(row, name)).status_code == 403
        assert viewer.post(step(row, name)).status_code == 403
    assert Node.objects.get().state == "online"
    assert ApiKey.objects.get().key_hash == key.key_hash


def test_a_model_is_unloaded_pinned_and_what_never_fits_is_refused_in_words(admin_client, node, wire):
    model = node.models.get()
    for name, done in (("unload", "Asked to unload"), ("pin", "Pinned")):
        assert done in admin_client.post(step(model, name), follow=True).content.decode()
    assert wire.xlen(control_key(node.pk)) == 2
    NodeModel.objects.update(fits=False, state="offered", reason="too large")
    said = admin_client.post(step(model, "load"), follow=True).content.decode()
    assert "can never be loaded" in said
    assert [e.change_message for e in LogEntry.objects.order_by("pk")] == ["Asked to unload", "Pinned"]


def test_no_more_than_the_ticked_rows_whatever_is_sent(admin_client, node):
    other, _ = enrol(name="other")
    form = {"action": "drain", "_selected_action": [node.pk], "select_across": "1", "confirmed": "yes"}
    admin_client.post(reverse("admin:nodes_node_changelist"), form)
    other.refresh_from_db()
    assert (Node.objects.get(pk=node.pk).state, other.state) == ("draining", "online")


@pytest.mark.parametrize(("model", "prefix"), [(ApiKey, "sk-gt"), (EnrolmentToken, "gte")])
def test_a_new_secret_is_in_one_answer_and_nowhere_else(admin_client, model, prefix, wire):
    form = {"name": "bob", "note": "lab", "max_uses": "1", "priority": "0"}
    page = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")
    answer = admin_client.post(page, form)
    (secret,) = set(re.findall(rf"{prefix}-[\w-]{{43}}", answer.content.decode()))
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    assert secret not in str(answer.cookies)
    assert secret not in str([s.get_decoded() for s in Session.objects.all()])
    listed = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    assert secret not in admin_client.get(listed).content.decode()
    assert secret not in str(list(LogEntry.objects.values()))


# -- what a web process has a part in ------------------------------------------------------------------


@pytest.fixture
async def ann(ledger) -> dict[str, str]:
    return await caller()


@pytest.fixture
def lab(wire) -> ScriptedNode:
    return ScriptedNode(wire)


@pytest.fixture
async def operator(lab, ann, serve):
    """The application, with the operator's session."""

    def log_in() -> dict[str, str]:
        user = get_user_model().objects.create_superuser("boss", password="p")
        browser = Client()
        browser.force_login(user)
        browser.get("/admin/nodes/node/")
        return {name: morsel.value for name, morsel in browser.cookies.items()}

    client = await serve()
    for name, value in (await sync_to_async(log_in)()).items():
        client.cookies.set(name, value)
    return client


async def take(client, row: Job, name: str):
    """Open the page that asks, and send its form."""
    asked = await client.get(step(row, name))
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', asked.text)
    assert token, asked.text[:500]
    return await client.post(
        step(row, name), data={"csrfmiddlewaretoken": token[1], "confirmed": "yes"}, follow_redirects=True
    )


async def test_an_asynchronous_job_is_cancelled_once(operator, ann):
    id_ = (await operator.post("/jobs", json=CHAT, headers=ann)).json()["id"]
    job = await Job.objects.aget(pk=id_)
    answer = await take(operator, job, "cancel")
    assert "Cancelled:" in answer.text
    await job.arefresh_from_db()
    assert (job.state, job.error_code) == (JobState.CANCELLED, "cancelled")
    again = await take(operator, job, "cancel")
    assert "nothing to do, it is cancelled" in again.text
    assert await LogEntry.objects.acount() == 1


async def test_who_waits_for_a_cancelled_job_is_told(operator, ann, lab):
    asking = asyncio.create_task(operator.post("/v1/chat/completions", json=CHAT, headers=ann))
    work = await lab.take()
    await operator.get(f"/jobs/{work.job}", headers=ann)  # its row is written by now
    job = await Job.objects.aget(pk=work.job)
    await take(operator, job, "cancel")
    assert (await asking).json()["error"]["code"] == "cancelled"
    assert lab.controls() == [Cancel(work.job, 1)]
    entry = await LogEntry.objects.aget()
    assert (entry.object_id, entry.change_message) == (work.job, "Cancelled")


async def test_a_failed_job_is_retried_as_a_new_one(operator):
    key = await ApiKey.objects.aget()
    job = await Job.objects.acreate(
        id="0" * 32, model="m", path="/v1/completions", asynchronous=True, state=JobState.FAILED,
        key=key, request=b"{}",
    )  # fmt: skip
    answer = await take(operator, job, "retry")
    new = await Job.objects.exclude(pk=job.pk).aget()
    assert f"as {new.pk}" in answer.text
    assert (await LogEntry.objects.aget()).change_message == f"Retried as {new.pk}"
    again = await take(operator, job, "retry")
    assert "retried already" in again.text
    assert await Job.objects.acount() == 2
