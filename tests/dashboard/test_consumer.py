"""The socket of the dashboard: who is let in, what comes, and who is sent away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import transaction
from django.urls import path

from dashboard import consumer
from dashboard.consumer import DashboardConsumer
from dashboard.hub import Visitor
from dashboard.selecting import View
from jobs.models import Job, JobState
from nodes.models import Gpu, Node, NodeModel, NodeState
from tests.dashboard.conftest import Page, session
from tests.jobs.scripted import ScriptedNode, until
from tests.tables import rename


@pytest.fixture
async def page(hub, staff):
    """A page that is open."""
    found = Page(hub, staff)
    assert await found.open()
    yield found
    await found.close()


@transaction.atomic
def registered() -> Node:
    """A node with a GPU and a model, all at once as the registry writes it."""
    node = Node.objects.create(pk="a" * 16, name="lab-a", state=NodeState.ONLINE, incarnation=1)
    NodeModel.objects.create(node=node, name="m", state="ready", slots=4)
    Gpu.objects.create(node=node, index=0, uuid="u", name="RTX", vram_total=2**34, vram_free=2**33)
    return node


async def stored(**changes) -> Node:
    """A node in the ledger."""
    fields = {"pk": "a" * 16, "name": "lab-a", "state": NodeState.ONLINE, "incarnation": 1}
    return await Node.objects.acreate(**{**fields, **changes})


async def test_the_state_comes_first_and_then_what_changes(page):
    first = await page.message()
    assert set(first["parts"]) == {"health", "figures", "models", "jobs", "events", "listing"}
    assert "No jobworker runs" in first["parts"]["health"]
    second = await page.message()
    assert set(second) == {"at"}
    assert second["at"] > first["at"]


async def test_a_job_and_its_node_are_shown_while_it_runs(page, wire):
    ScriptedNode(wire)
    node = await sync_to_async(registered)()
    await page.until(lambda p: p.order == [node.pk])
    assert "8.0 of 16.0 GiB" in page.cards[node.pk]
    job = await Job.objects.acreate(pk="0" * 24 + "cafecafe", model="m", node=node, state=JobState.RUNNING)
    await page.until(lambda p: "cafecafe" in p.parts["jobs"])
    assert "lab-a" in page.parts["jobs"]
    await Job.objects.filter(pk=job.pk).aupdate(state=JobState.COMPLETED)
    await page.until(lambda p: "Nothing runs and nothing waits" in p.parts["jobs"])


async def test_a_node_without_its_lease_does_not_answer(page, desk, wire):
    scripted = ScriptedNode(wire)
    await desk.refresh()
    await stored()
    await page.until(lambda p: "online" in p.cards.get(scripted.id, ""))
    scripted.die()
    await desk.refresh()
    await page.until(lambda p: "1 node does not answer: lab-a." in p.parts["health"])
    assert "does not answer" in page.cards[scripted.id]


async def test_a_page_sees_the_nodes_it_asked_for(hub, staff, wire):
    await stored()
    await stored(pk="b" * 16, name="other")
    page = Page(hub, staff, "q=oth")
    assert await page.open()
    await page.message()
    assert page.order == ["b" * 16]
    await page.say({"view": {"q": "lab"}})
    await page.until(lambda p: p.order == ["a" * 16])
    await page.close()


# -- who may watch -------------------------------------------------------------------------------------


async def test_without_a_session_nobody_watches(hub, ledger):
    page = Page(hub)
    await page.open()
    assert await page.closed() == consumer.REFUSED
    assert hub.visitors == 0


async def test_who_is_no_staff_does_not_watch(hub, ledger):
    page = Page(hub, await sync_to_async(session)("bob", staff=False))
    await page.open()
    assert await page.closed() == consumer.REFUSED


@pytest.mark.parametrize("origin", ["https://evil.example", "http://testserver:8080", "null", "", "http://["])
async def test_another_site_may_not_ride_on_a_session(hub, staff, origin):
    page = Page(hub, staff, origin=origin)
    assert not await page.open()
    assert hub.visitors == 0


async def test_a_path_that_is_not_there_is_refused_without_a_traceback(hub, staff):
    assert not await Page(hub, staff, path="/ws/nothing").open()


async def test_what_is_no_browser_needs_a_session_all_the_same(hub, staff):
    for cookie, code in ((staff, 0), ("", consumer.REFUSED)):
        page = Page(hub, cookie, origin=None)
        assert await page.open()
        if code:
            assert await page.closed() == code
        else:
            assert (await page.message())["parts"]
            await page.close()


class Suspicious(DashboardConsumer):
    asked_again_seconds = 0.1


class Hasty(DashboardConsumer):
    shown_within_seconds = 1.5


def served(by: type[DashboardConsumer]) -> Any:
    """The application, with another consumer."""
    return AuthMiddlewareStack(URLRouter([path("ws/dashboard", by.as_asgi())]))


@pytest.mark.parametrize("what", ["deactivated", "logged out", "no staff any more"])
async def test_who_may_no_longer_watch_is_sent_away(hub, staff, what):
    page = Page(hub, staff, app=served(Suspicious))
    await page.open()
    await page.message()
    if what == "deactivated":
        await User.objects.aupdate(is_active=False)
    elif what == "logged out":
        await Session.objects.all().adelete()
    else:
        await User.objects.aupdate(is_staff=False)
    await page.say({"seen": True})
    assert await page.closed() == consumer.REFUSED


async def test_who_was_let_in_stays_while_the_ledger_is_away(hub, staff):
    page = Page(hub, staff, app=served(Suspicious))
    await page.open()
    await page.message()
    await rename("django_session", "django_session_away")
    try:
        for _ in range(3):  # rounds of half a second: it is asked again in each
            await page.message()
    finally:
        await rename("django_session_away", "django_session")
    await page.close()


async def test_without_a_hub_the_page_comes_again_later(staff, wire):
    page = Page(None, staff)
    await page.open()
    assert await page.closed() == consumer.NOT_HERE


async def test_one_process_shows_itself_to_so_many_pages(hub, staff, wire):
    for _ in range(consumer.MOST_SOCKETS - 1):
        hub.join(Visitor(View()))
    last, more = Page(hub, staff), Page(hub, staff)
    await last.open()
    await last.message()
    await more.open()
    assert await more.closed() == consumer.NOT_HERE
    await last.close()


# -- slow pages, and pages that talk nonsense ----------------------------------------------------------


async def test_a_page_that_shows_nothing_gets_one_message_and_is_sent_away(hub, staff):
    slow, quick = Page(hub, staff, app=served(Hasty)), Page(hub, staff, app=served(Hasty))
    await slow.open()
    await quick.open()
    await slow.message(seen=False)
    for _ in range(2):
        await quick.message()
    message = await slow.socket.receive_output(timeout=10)
    assert message == {"type": "websocket.close", "code": consumer.TOO_SLOW}  # and nothing in between
    assert hub.visitors == 1
    await quick.close()


async def test_a_slow_page_is_told_the_sum_of_what_it_missed(hub, staff, wire):
    slow, quick = Page(hub, staff), Page(hub, staff)
    await slow.open()
    await quick.open()
    await slow.message(seen=False)
    for name in ("a", "b", "c"):
        await stored(pk=name * 16, name=name)
        await quick.until(lambda p, name=name: name * 16 in p.order)
    await slow.say({"seen": True})
    await slow.until(lambda p: p.order == ["a" * 16, "b" * 16, "c" * 16])
    await slow.close()
    await quick.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"view": {"page": 0}}',
        '{"run": "rm"}',
        '{"view": {"q": "' + "x" * 3000 + '"}}',
        '"\ud800"',
        "{%s}" % (" " * 3000),
    ],
)
async def test_nonsense_ends_the_socket(page, text):
    await page.message()
    await page.socket.send_input({"type": "websocket.receive", "text": text})
    assert await page.closed() == consumer.NONSENSE


async def test_when_nobody_watches_nothing_is_done(hub, staff, wire):
    page = Page(hub, staff)
    await page.open()
    await page.message()
    assert wire.exists("gt:dashboard:leader")
    await page.close()
    await until(lambda: not wire.exists("gt:dashboard:leader"))
    before = wire.get("gt:dashboard:state:version")
    await asyncio.sleep(1.0)
    assert wire.get("gt:dashboard:state:version") == before
