from __future__ import annotations

import datetime

import msgspec
import pytest
from django.utils import timezone

from nodes import acl, registry, steering, view
from nodes.models import Node, NodeEvent, NodeState
from nodes.registry import Refusal
from tests.nodes.agents import GIB, HERE, controls, enrol, gpu, heartbeat, model
from worker_agent.contract import (
    Drain,
    Goodbye,
    GpuLoad,
    ModelState,
    Resume,
    control_key,
    inbox_key,
    lease_key,
)

pytestmark = pytest.mark.django_db


def beat(node: Node, **changes):
    node = Node.objects.get(pk=node.pk)
    return registry.beat(node, heartbeat(node.incarnation, **changes), HERE)


def routed(wire, node: Node):
    """The node as routing sees it, or None."""
    packed = wire.hget(view.NODES, node.pk)
    return msgspec.msgpack.decode(packed, type=view.NodeView) if packed else None


def slots(wire) -> dict[str, int]:
    return {k.decode(): int(v) for k, v in wire.hgetall(view.SLOTS).items()}


# -- beats ---------------------------------------------------------------------------------------------


def test_a_beat_writes_the_figures_and_publishes_them(wire):
    node, _ = enrol()
    load = GpuLoad(index=0, vram_free=7, utilisation=0.9, temperature_c=71.0, power_w=300.0)
    ready = model(running=3, waiting=1, kv_cache_usage=0.5, tokens_per_s=99.5, ttft_ms=12.0)
    answer = beat(node, gpus=[load], models=[ready], ram_free=1, disk_free=2, cpu_usage=0.5, attempts=["a:1"])
    assert (answer.state, answer.draining, answer.redis) == ("online", False, None)
    row = Node.objects.get()
    assert (row.ram_free, row.disk_free, row.cpu_usage, row.in_flight) == (1, 2, 0.5, 1)
    card = row.gpus.get()
    assert (card.vram_free, card.vram_total, card.utilisation) == (7, 24 * GIB, 0.9)
    assert (card.temperature_c, card.power_w) == (71.0, 300.0)
    m = row.models.get()
    assert (m.running, m.waiting, m.kv_cache_usage, m.tokens_per_s, m.ttft_ms) == (3, 1, 0.5, 99.5, 12.0)
    seen = routed(wire, node)
    assert (seen.models[0].kv_cache_usage, seen.models[0].ttft_ms) == (0.5, 12.0)


def test_a_node_is_published_with_its_weight_and_what_was_measured(wire):
    node, _ = enrol()
    beat(node, models=[model(stream_tokens_per_s=80.0)])
    seen = routed(wire, node).models[0]
    assert (seen.weight, seen.weight_from, seen.stream_tokens_per_s) == (1.008, "RTX 4090", 80.0)


def test_models_are_replaced_and_only_ready_ones_have_slots(wire):
    node, _ = enrol()
    assert slots(wire) == {f"{node.pk}/m": 4}
    beat(node, models=[model("org/a", slots=2), model("b", ModelState.LOADING, progress=0.5)])
    assert sorted(Node.objects.get().models.values_list("name", "state")) == [
        ("b", "loading"),
        ("org/a", "ready"),
    ]
    assert slots(wire) == {f"{node.pk}/org/a": 2}
    assert {m.name for m in routed(wire, node).models} == {"org/a", "b"}
    beat(node, models=[])
    assert slots(wire) == {}


def test_publishing_one_node_leaves_the_slots_of_another(wire):
    one, _ = enrol(name="one")
    two, _ = enrol(name="two", models=[model("b")])
    beat(one, models=[])
    assert slots(wire) == {f"{two.pk}/b": 4}


def test_each_change_is_announced_with_the_node_that_changed(wire):
    node, _ = enrol()
    other, _ = enrol(name="other")
    beat(node)
    assert [fields[b"n"].decode() for _, fields in wire.xrange(view.CHANGES)] == [node.pk, other.pk, node.pk]


def test_an_agent_that_is_stopping_drains_and_may_come_back(wire):
    node, _ = enrol()
    answer = beat(node, draining=True)
    assert (answer.state, answer.draining) == (NodeState.DRAINING, False)
    assert slots(wire) == {}
    assert beat(node).state == NodeState.ONLINE
    assert slots(wire) == {f"{node.pk}/m": 4}


def test_what_the_operator_drained_stays_drained_whatever_the_agent_beats():
    node, _ = enrol()
    steering.drain(node, "ann")
    answer = beat(node)
    assert (answer.state, answer.draining) == (NodeState.DRAINING, True)


@pytest.mark.parametrize(("wanted", "state"), [(False, NodeState.ONLINE), (True, NodeState.DRAINING)])
@pytest.mark.parametrize("was", [NodeState.UNHEALTHY, NodeState.GONE])
def test_a_lost_node_returns_with_its_next_beat(was, wanted, state):
    node, _ = enrol()
    Node.objects.update(state=was, drain_wanted=wanted)
    assert beat(node).state == state
    assert NodeEvent.objects.all()[0].reason == "beats again"


def test_a_beat_of_a_fenced_agent_changes_nothing():
    node, _ = enrol()
    Node.objects.update(incarnation=2)
    node.refresh_from_db()
    before = Node.objects.values().get()
    with pytest.raises(Refusal) as caught:
        registry.beat(node, heartbeat(1, ram_free=1), HERE)
    assert (caught.value.status, caught.value.code) == (409, "fenced")
    assert Node.objects.values().get() == before


def test_a_pending_node_beats_without_getting_work(wire):
    node, _ = enrol(needs_approval=True)
    assert beat(node).state == NodeState.PENDING
    assert slots(wire) == {}
    assert steering.approve(node, "ann")
    assert slots(wire) == {f"{node.pk}/m": 4}
    assert not steering.approve(node, "ann")


@pytest.mark.parametrize("user_is_there", [True, False])
@pytest.mark.parametrize("told", [{"redis_denied": True}, {"redis_connected": False}])
def test_a_node_gets_new_credentials_only_when_its_own_do_not_work(wire, told, user_is_there):
    node, first = enrol()
    if not user_is_there:
        wire.acl_deluser(acl.username(node.pk))
    access = beat(node, **told).redis
    if user_is_there and "redis_connected" in told:  # it will get through again by itself
        assert access is None
        assert Node.objects.get().redis_password_sha256 == node.redis_password_sha256
    else:
        assert access.password != first.redis.password
        assert Node.objects.get().redis_password_sha256 != node.redis_password_sha256
        assert acl.exists(wire, node.pk)


def test_a_new_gpu_in_a_beat_is_not_made_up():
    node, _ = enrol(gpus=[gpu(0), gpu(1)])
    beat(node, gpus=[GpuLoad(index=7, vram_free=1)])
    assert sorted(Node.objects.get().gpus.values_list("index", flat=True)) == [0, 1]


# -- goodbye, and what operators ask for ---------------------------------------------------------------


def test_goodbye_takes_the_node_out_and_its_redis_user_away(wire):
    node, _ = enrol()
    wire.set(lease_key(node.pk), "1")
    registry.goodbye(node, Goodbye(1, "SIGTERM"))
    assert Node.objects.get().state == NodeState.GONE
    assert "SIGTERM" in NodeEvent.objects.all()[0].reason
    assert not acl.exists(wire, node.pk)
    assert not wire.exists(lease_key(node.pk))
    assert slots(wire) == {}
    with pytest.raises(Refusal):
        registry.goodbye(node, Goodbye(9))


def test_goodbye_is_heard_though_the_last_beat_has_moved_the_node_meanwhile(wire):
    node, _ = enrol()
    assert steering.drain(Node.objects.get(), "a beat that was under way")
    assert node.state == NodeState.ONLINE  # as goodbye's door has read it
    registry.goodbye(node, Goodbye(1, "SIGTERM"))
    assert Node.objects.get().state == NodeState.GONE


def test_drain_and_resume_tell_the_agent_and_close_and_open_its_slots(wire):
    node, _ = enrol()
    assert steering.drain(node, "ann")
    assert slots(wire) == {}
    assert not steering.drain(node, "ann")
    assert steering.resume(node, "bob")
    assert slots(wire) == {f"{node.pk}/m": 4}
    assert controls(wire, node) == [Drain(), Drain(), Resume()]
    assert [e.reason for e in NodeEvent.objects.all()[:2]] == ["resumed by bob", "drained by ann"]


def test_a_drain_of_a_lost_node_holds_when_it_returns():
    node, _ = enrol()
    Node.objects.update(state=NodeState.UNHEALTHY)
    node.refresh_from_db()
    assert not steering.drain(node, "ann")
    assert beat(node).state == NodeState.DRAINING


def test_a_revoked_node_is_cut_off_at_once_and_for_good(wire):
    node, answer = enrol()
    authorization = f"Bearer {node.pk}.{answer.secret}"
    assert registry.authenticate(authorization) == node
    assert steering.revoke(node, "ann")
    assert not steering.revoke(node, "ann")
    assert not acl.exists(wire, node.pk)
    assert routed(wire, node) is None
    assert not wire.exists(inbox_key(node.pk), control_key(node.pk))
    with pytest.raises(Refusal) as caught:
        registry.authenticate(authorization)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "wrong", ["", "Bearer", "Bearer {id}", "Bearer {id}.gtn-x", "Basic {id}.{s}", "Bearer {id}.{s}x"]
)
def test_wrong_credentials_are_refused(wrong):
    node, answer = enrol()
    with pytest.raises(Refusal) as caught:
        registry.authenticate(wrong.format(id=node.pk, s=answer.secret))
    assert (caught.value.status, caught.value.code) == (401, "unknown_node")


# -- what nobody asks for ------------------------------------------------------------------------------


def test_silent_nodes_become_unhealthy_unless_their_lease_lives(wire, settings):
    settings.UNHEALTHY_AFTER_SECONDS = 60
    silent, _ = enrol(name="silent")
    leased, _ = enrol(name="leased")
    fresh, _ = enrol(name="fresh")
    gone, _ = enrol(name="gone")
    wire.set(lease_key(leased.pk), "1")
    long_ago = timezone.now() - datetime.timedelta(seconds=61)
    Node.objects.exclude(pk=fresh.pk).update(last_beat_at=long_ago)
    Node.objects.filter(pk=gone.pk).update(state=NodeState.GONE)
    assert registry.mark_unhealthy() == 1
    states = dict(Node.objects.values_list("name", "state"))
    assert states == {"silent": "unhealthy", "leased": "online", "fresh": "online", "gone": "gone"}
    assert not any(place.startswith(silent.pk) for place in slots(wire))
    assert registry.mark_unhealthy() == 0


def test_everything_comes_back_after_redis_has_lost_data_and_users(wire):
    here, _ = enrol(name="here")
    gone, _ = enrol(name="gone")
    out, _ = enrol(name="out")
    Node.objects.filter(pk=gone.pk).update(state=NodeState.GONE)
    steering.revoke(out, "ann")
    wire.flushall()
    for node in (here, gone):
        wire.acl_deluser(acl.username(node.pk))
    registry.heal()
    assert slots(wire) == {f"{here.pk}/m": 4}
    assert routed(wire, here).name == "here"
    assert routed(wire, out) is None
    assert acl.exists(wire, here.pk)
    assert not acl.exists(wire, gone.pk)
    assert not acl.exists(wire, out.pk)
    assert wire.exists(view.ALIVE)


def test_healing_leaves_users_that_are_still_there_alone(wire):
    node, _ = enrol()
    before = wire.acl_getuser(acl.username(node.pk))
    registry.heal()
    assert wire.acl_getuser(acl.username(node.pk)) == before
