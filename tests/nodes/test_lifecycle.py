from __future__ import annotations

import itertools

import pytest

from nodes.lifecycle import MOVES, Move, move, note
from nodes.models import Node, NodeEvent, NodeState

pytestmark = pytest.mark.django_db

S = NodeState
EXPECTED: dict = {
    (Move.APPROVE, S.PENDING): S.ONLINE,
    (Move.DRAIN, S.ONLINE): S.DRAINING,
    (Move.RESUME, S.DRAINING): S.ONLINE,
    (Move.LOSE, S.ONLINE): S.UNHEALTHY,
    (Move.LOSE, S.DRAINING): S.UNHEALTHY,
    (Move.RETURN, S.UNHEALTHY): S.ONLINE,
    (Move.RETURN, S.GONE): S.ONLINE,
    (Move.RETURN_DRAINED, S.UNHEALTHY): S.DRAINING,
    (Move.RETURN_DRAINED, S.GONE): S.DRAINING,
    (Move.LEAVE, S.ONLINE): S.GONE,
    (Move.LEAVE, S.DRAINING): S.GONE,
    (Move.LEAVE, S.UNHEALTHY): S.GONE,
    **{(Move.REVOKE, state): S.REVOKED for state in NodeState if state != S.REVOKED},
}


def node_in(state: NodeState) -> Node:
    return Node.objects.create(pk="0" * 16, name="box", state=state, secret_hash="x")


@pytest.mark.parametrize(("how", "state"), list(itertools.product(Move, NodeState)))
def test_a_move_is_made_only_from_its_listed_states(how, state):
    node = node_in(state)
    to = EXPECTED.get((how, state))
    assert move(node, how, "because") is (to is not None)
    now = to or state
    assert node.state == Node.objects.get().state == now
    events = list(NodeEvent.objects.values_list("was", "now", "reason"))
    assert events == ([(state, to, "because")] if to else [])


def test_every_move_is_in_the_table():
    assert set(MOVES) == set(Move)


def test_the_second_of_two_who_move_a_node_loses_and_leaves_no_trace():
    node_in(S.ONLINE)
    first, second = Node.objects.get(), Node.objects.get()
    assert move(first, Move.DRAIN, "first")
    assert not move(second, Move.LEAVE, "second", drain_wanted=True)
    row = Node.objects.get()
    assert (row.state, row.state_reason, row.drain_wanted) == (S.DRAINING, "first", False)
    assert [e.reason for e in NodeEvent.objects.all()] == ["first"]
    assert second.state == S.ONLINE


def test_columns_are_written_with_the_move_and_onto_the_object():
    node = node_in(S.ONLINE)
    assert move(node, Move.DRAIN, "x" * 400, drain_wanted=True)
    row = Node.objects.get()
    assert node.drain_wanted
    assert row.drain_wanted
    assert row.state_reason == node.state_reason == "x" * 300


def test_a_note_changes_no_state():
    node = node_in(S.GONE)
    note(node, "looked at")
    assert str(NodeEvent.objects.get()) == "looked at"
    assert Node.objects.get().state == S.GONE
