from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from gputorrent import credentials
from nodes import acl, registry, steering
from nodes.models import EnrolmentToken, Node, NodeEvent, NodeState
from nodes.registry import Refusal, new_token
from tests.nodes.agents import HERE, enrol, registration, restart
from worker_agent.contract import PROTOCOL, inbox_key, lease_key

pytestmark = pytest.mark.django_db


def register(**changes):
    return registry.register(registration(**changes), HERE)


def refused(**changes) -> Refusal:
    """The refusal of a registration, which must leave no trace."""
    before = (Node.objects.count(), NodeEvent.objects.count(), list(EnrolmentToken.objects.values()))
    with pytest.raises(Refusal) as caught:
        register(**changes)
    assert (Node.objects.count(), NodeEvent.objects.count(), list(EnrolmentToken.objects.values())) == before
    return caught.value


def test_a_token_lets_a_node_in_once_and_is_counted():
    row, token = new_token()
    answer = register(token=token)
    node = Node.objects.get()
    assert (answer.node, answer.state, answer.incarnation) == (node.pk, "online", 1)
    assert credentials.matches(answer.secret, node.secret_hash)
    assert node.token == row
    assert (node.hostname, node.gpus.get().name, node.models.get().name) == ("box", "RTX 4090", "m")
    row.refresh_from_db()
    assert row.uses == 1
    assert "used up" in refused(token=token).message


def test_neither_token_nor_secrets_are_stored_in_clear():
    _, token = new_token()
    answer = register(token=token)
    stored = str(list(EnrolmentToken.objects.values())) + str(list(Node.objects.values()))
    for secret in (token, answer.secret, answer.redis.password):
        assert secret not in stored


def test_a_token_for_any_number_of_nodes_stays_good():
    _, token = new_token(max_uses=0)
    assert len({register(token=token).node for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"expires_at": timezone.now() - datetime.timedelta(seconds=1)}, "expired"),
        ({"revoked_at": timezone.now()}, "revoked"),
        ({"uses": 1}, "used up"),
        ({"token_hash": "other"}, "not known"),
    ],
)
def test_a_spoilt_token_is_refused_with_the_reason(spoil, says):
    _, token = new_token()
    EnrolmentToken.objects.update(**spoil)
    refusal = refused(token=token)
    assert (refusal.status, refusal.code) == (401, "bad_token")
    assert says in refusal.message


def test_without_token_and_without_identity_a_token_is_asked_for():
    assert refused().code == "token_required"


def test_a_token_that_needs_approval_makes_a_node_wait_for_it():
    node, answer = enrol(needs_approval=True)
    assert answer.state == node.state == NodeState.PENDING
    assert restart(answer).state == NodeState.PENDING
    assert steering.approve(node, "ann")
    assert restart(answer).state == NodeState.ONLINE


def test_names_are_made_unique():
    _, token = new_token(max_uses=0)
    for _ in range(3):
        register(token=token)
    assert sorted(Node.objects.values_list("name", flat=True)) == ["box", "box-2", "box-3"]
    for _ in range(2):
        register(token=token, name="n" * 63)
    long = Node.objects.filter(name__startswith="nn").values_list("name", flat=True)
    assert sorted(map(len, long)) == [57, 63]


@pytest.mark.parametrize(
    ("protocol", "code"), [(PROTOCOL - 1, "protocol_too_old"), (PROTOCOL + 1, "protocol_too_new")]
)
def test_another_protocol_is_refused_and_told_which_side_to_upgrade(protocol, code):
    _, token = new_token()
    refusal = refused(token=token, protocol=protocol)
    assert (refusal.status, refusal.code) == (426, code)
    assert f"upgrade the {'agent' if protocol < PROTOCOL else 'coordinator'}" in refusal.message


def test_a_known_node_that_restarts_keeps_its_identity_and_fences_the_old_start(wire):
    node, first = enrol()
    wire.xadd(inbox_key(node.pk), {"m": "work for the one before"})
    old_digest = Node.objects.get().redis_password_sha256
    second = restart(first, models=[], gpus=[])
    row = Node.objects.get()
    assert (second.node, second.incarnation, second.secret) == (node.pk, 2, "")
    assert second.redis.password != first.redis.password
    assert row.redis_password_sha256 != old_digest
    assert not wire.exists(inbox_key(node.pk))
    assert not row.models.exists()
    assert not row.gpus.exists()
    with pytest.raises(Refusal) as caught:
        registry.check_incarnation(row, first.incarnation)
    assert (caught.value.status, caught.value.code) == (409, "fenced")


def test_a_restart_updates_gpus_in_place():
    _, first = enrol()
    gpus = list(Node.objects.get().gpus.values_list("pk", flat=True))
    restart(first)
    assert list(Node.objects.get().gpus.values_list("pk", flat=True)) == gpus


@pytest.mark.parametrize("changes", [{"secret": "gtn-wrong"}, {"secret": ""}, {"node": "f" * 16}])
def test_a_wrong_identity_is_refused(changes):
    _, answer = enrol()
    known = {"node": answer.node, "secret": answer.secret}
    assert refused(**{**known, **changes}).code == "unknown_node"


def test_a_revoked_node_stays_out():
    node, answer = enrol()
    steering.revoke(node, "ann")
    refusal = refused(node=answer.node, secret=answer.secret)
    assert (refusal.status, refusal.code) == (403, "node_revoked")
    assert "ann" in refusal.message


def test_a_copy_on_another_host_is_refused_while_the_first_lives(wire):
    node, answer = enrol()
    wire.set(lease_key(node.pk), "1")
    refusal = refused(node=answer.node, secret=answer.secret, machine="machine-2")
    assert (refusal.status, refusal.code) == (409, "identity_in_use")
    assert refusal.retry_after > 0
    assert restart(answer).incarnation == 2  # the same host may take over at once
    wire.delete(lease_key(node.pk))
    assert restart(answer, machine="machine-2").incarnation == 3


def test_what_is_listed_twice_is_refused():
    twice = registration()
    assert "model" in refused(models=twice.models * 2).message
    assert "GPU" in refused(gpus=twice.gpus * 2).message


def test_a_node_that_was_gone_or_unhealthy_is_online_again_when_it_registers():
    _, answer = enrol()
    for state in (NodeState.GONE, NodeState.UNHEALTHY):
        Node.objects.update(state=state, drain_wanted=False)
        assert restart(answer).state == NodeState.ONLINE
    Node.objects.update(state=NodeState.GONE, drain_wanted=True)
    assert restart(answer).state == NodeState.DRAINING


def test_a_redis_user_exists_for_the_node(wire):
    node, answer = enrol()
    assert acl.exists(wire, node.pk)
    assert answer.redis.username == acl.username(node.pk)
    assert HERE in answer.redis.url
