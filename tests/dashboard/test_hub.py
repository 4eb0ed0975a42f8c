"""One state for all who watch: who makes it, and what it says when something is away."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.db import OperationalError

from dashboard import collecting, rows
from dashboard.collecting import MOST_MODELS, Wire, build
from dashboard.election import Election
from dashboard.feed import note_breakers
from dashboard.hub import Hub, Visitor
from dashboard.selecting import View
from dashboard.state import State, Totals, encode
from gputorrent import ledger
from jobs import breaker
from jobs.breaker import Breaker
from jobs.models import Job, JobState
from nodes.models import Gpu, Node, NodeEvent, NodeModel, NodeState
from tests.dashboard import made
from tests.jobs.desk import Desk
from tests.jobs.scripted import until


async def test_one_leads_until_it_resigns_or_falls_silent(desk, wire):
    one, two = Election(desk.dispatcher.pipe, "one"), Election(desk.dispatcher.pipe, "two")
    assert await one.hold()
    assert not await two.hold()
    await two.resign()  # what one does not have one cannot give up
    assert await one.hold()
    await one.resign()
    assert await two.hold()
    assert 0 < wire.pttl("gt:dashboard:leader") <= 3000


async def test_the_second_process_shows_what_the_first_has_made(desk, wire):
    other = Desk()
    await other.dispatcher.start()
    first, second = Hub(desk.dispatcher), Hub(other.dispatcher)
    try:
        here, there = Visitor(View()), Visitor(View())
        first.join(here)
        await asyncio.wait_for(here.changed.wait(), 10)
        second.join(there)
        await asyncio.wait_for(there.changed.wait(), 10)
        assert wire.get("gt:dashboard:leader").decode() == desk.dispatcher.mailbox.web
        assert second._rows is None  # it has not asked the ledger
        assert there.latest.parts["health"] == here.latest.parts["health"]
        first.leave(here)
        there.changed.clear()
        at = there.latest.at
        await until(lambda: wire.get("gt:dashboard:leader") == other.dispatcher.mailbox.web.encode())
        await until(lambda: there.latest.at > at)
    finally:
        await first.stop()
        await second.stop()
        await other.dispatcher.stop()


async def test_without_redis_it_says_so(desk, wire, hub):
    wire.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval", "-time")
    try:
        visitor = Visitor(View())
        hub.join(visitor)
        await asyncio.wait_for(visitor.changed.wait(), 10)
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert "Redis does not answer" in visitor.latest.parts["health"]


async def test_what_was_edited_in_place_is_seen_with_the_next_whole_reading(hub, wire):
    node = await Node.objects.acreate(pk="a" * 16, name="lab", state=NodeState.ONLINE)
    await Gpu.objects.acreate(node=node, index=0, uuid="u", name="L40S", vram_total=2, vram_free=1)
    visitor = Visitor(View())
    hub.join(visitor)
    await until(lambda: "L40S" in visitor.latest.cards.get(node.pk, ""))
    await Gpu.objects.aupdate(name="H200")
    hub._whole_from = 0.0  # as if ten seconds had passed
    await until(lambda: "H200" in visitor.latest.cards[node.pk])


def test_without_the_ledger_it_shows_what_it_said_last():
    def away(_) -> rows.Rows:
        raise OperationalError

    before = rows.Rows(running=7)
    state, kept = build(Wire(1.0, frozenset()), away, before, lambda _: None)
    assert "The database does not answer." in [f.text for f in state.findings]
    assert (state.running, kept) == (7, before)


def test_models_beyond_those_shown_are_counted():
    node = rows.NodeRow(1.0, "a" * 16, "lab", NodeState.ONLINE, "", 0.1, 0, 0, 0, 0)
    models = [rows.ModelRow(f"m{n}", "ready", 0.0, 4, "") for n in range(50)]
    ledger = rows.Rows(nodes=[node], models={node.id: models})
    state, _ = build(Wire(1.0, frozenset({node.id})), lambda _: ledger)
    assert len(state.models) == MOST_MODELS < 50
    assert (state.models_known, state.models_ready) == (50, 50)


@pytest.mark.django_db
@pytest.mark.parametrize("many", [1, 40])
def test_the_ledger_is_asked_a_constant_number_of_times(many, django_assert_num_queries):
    nodes = [Node(pk=f"{i:016x}", name=f"n{i}", state=NodeState.ONLINE) for i in range(many)]
    Node.objects.bulk_create(nodes)
    Gpu.objects.bulk_create(
        Gpu(node=n, index=0, uuid="u", name="g", vram_total=2, vram_free=1) for n in nodes
    )
    NodeModel.objects.bulk_create(NodeModel(node=n, name="m", state="ready", slots=1) for n in nodes)
    NodeEvent.objects.bulk_create(NodeEvent(node=n, was="gone", now="online", reason="r") for n in nodes)
    Job.objects.bulk_create(
        Job(pk=f"{i:032x}", model="m", node=nodes[i % many], state=state)
        for i, state in enumerate([JobState.RUNNING, JobState.PENDING, JobState.FAILED] * many)
    )
    with django_assert_num_queries(12):
        found = rows.read()
    assert (len(found.nodes), found.running, found.waiting) == (many, many, many)
    NodeModel.objects.filter(node=nodes[0]).update(state="failed")
    Node.objects.filter(pk=nodes[0].pk).update(last_beat_at="2026-01-01T00:00:00Z")
    with django_assert_num_queries(12):
        again = rows.read(found)
    assert [m.state for n in again.nodes for m in again.models[n.id]] == ["failed", *["ready"] * (many - 1)]
    assert all(again.gpus[n.pk] is found.gpus[n.pk] for n in nodes[1:])  # not read again
    assert len(found.jobs) == min(2 * many, rows.JOBS)


def test_a_node_that_has_only_just_spoken_may_still_take_its_lease(settings):
    settings.LEASE_SECONDS = 6
    node = rows.NodeRow(100.0, "a", "a", "online", "", 0, 0, 0, 0, 0)
    looks = [(105.0, frozenset()), (107.0, frozenset()), (107.0, frozenset({"a"})), (107.0, None)]
    shown = [collecting.shown(node, Wire(at, leased)) for at, leased in looks]
    assert shown == ["online", "silent", "online", "online"]


async def test_what_happens_to_breakers_is_told_once_whoever_looks(desk, wire):
    pipe = desk.dispatcher.pipe
    opened = Breaker("a", "m", breaker.State.OPEN, 6, 0.0, 1)
    for breakers in ([], [opened], [opened], [Breaker("a", "m", breaker.State.OPEN, 7, 0.0, 2)], [], []):
        told = await note_breakers(pipe, breakers)
    assert [(t.place, t.opening) for t in told] == [("a/m", 0), ("a/m", 2), ("a/m", 1)]


async def test_a_view_that_another_page_has_already_is_shown_without_news(desk, wire, hub):
    told = State(5.0, Totals(), [], [made.node("lab-a"), made.node("lab-b")], [], 0, 0, [], [], 0, False)
    wire.set("gt:dashboard:leader", "another")
    wire.set("gt:dashboard:state", encode(told))
    wire.set("gt:dashboard:state:version", "1")
    wide, narrow = Visitor(View()), Visitor(View(q="lab-b"))
    hub.join(wide)
    hub.join(narrow)
    await until(lambda: len(wide.latest.order) == 2 and len(narrow.latest.order) == 1)
    wide.view = narrow.view
    hub.look_again()
    await until(lambda: len(wide.latest.order) == 1)


async def test_a_ledger_that_says_nothing_holds_no_page_up(desk, hub):
    answers = threading.Event()
    hanging = [asyncio.create_task(ledger.within(30, answers.wait)) for _ in range(ledger._MOST_UNDER_WAY)]
    try:
        visitor = Visitor(View())
        hub.join(visitor)
        await until(lambda: "The database does not answer" in visitor.latest.parts.get("health", ""))
    finally:
        answers.set()
        await asyncio.gather(*hanging)
    await until(lambda: "The database does not answer" not in visitor.latest.parts["health"])
