"""What a process reads of the registry when something changed, and when it has missed too much."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gputorrent.redis import Pipe, asynchronous
from nodes import view
from nodes.view import ModelView, NodeView, Snapshot
from worker_agent.contract import ModelState, lease_key

A, B, C = (letter * 16 for letter in "abc")


class Counting(Pipe):
    """A pipe that knows what it was asked."""

    asked: list[str]

    def send(self, *command: Any) -> Any:
        self.asked.append(command[0])
        return super().send(*command)

    def run(self, *script: Any, **how: Any) -> Any:
        self.asked.append("EVALSHA")
        return super().run(*script, **how)


@pytest.fixture
async def pipe(wire) -> AsyncIterator[Counting]:
    client = asynchronous()
    pipe = Counting(client)
    pipe.asked = []
    view.mark_filled(wire)
    yield pipe
    await client.aclose()


def offering(
    id_: str, *models: str, ttft: float = 20.0, state: str = "online", speed: float = 0.0
) -> NodeView:
    offers = [
        ModelView(m, ModelState.READY, 4, 8192, 0.0, ttft, True, 0, "", 1.0, "L40S", speed) for m in models
    ]
    return NodeView(id_, id_, state, 1, offers, 0, 0, 0.0)


def ttfts(snapshot: Snapshot, model: str = "m") -> dict[str, float]:
    return {node.id: m.ttft_ms for node, m in snapshot.by_model.get(model, ())}


async def test_only_the_nodes_that_changed_are_read(wire, pipe):
    snapshot = Snapshot()
    view.publish(wire, [offering(A, "m"), offering(B, "m", "n"), offering(C, "m")])
    assert await snapshot.refresh(pipe) == {A, B, C}
    view.publish(wire, [offering(B, "m", "o", ttft=30.0)])
    pipe.asked.clear()
    assert await snapshot.refresh(pipe) == {B}
    assert "HGETALL" not in pipe.asked
    assert ttfts(snapshot) == {A: 20.0, B: 30.0, C: 20.0}
    assert (ttfts(snapshot, "n"), ttfts(snapshot, "o")) == ({}, {B: 30.0})
    pipe.asked.clear()
    assert await snapshot.refresh(pipe) == frozenset()
    assert set(pipe.asked) == {"XRANGE", "EXISTS", "EVALSHA"}


async def test_a_revoked_node_goes_and_a_new_one_comes(wire, pipe):
    snapshot = Snapshot()
    view.publish(wire, [offering(A, "m")])
    await snapshot.refresh(pipe)
    wire.set(lease_key(B), "1")
    view.publish(wire, [offering(A, "m", state="revoked"), offering(B, "m")])
    assert await snapshot.refresh(pipe) == {A, B}
    assert (set(snapshot.nodes), ttfts(snapshot), snapshot.leased) == ({B}, {B: 20.0}, {B})
    wire.delete(lease_key(B))
    assert await snapshot.refresh(pipe) == frozenset()
    assert snapshot.leased == frozenset()
    wire.set(lease_key(B), "1")
    assert await snapshot.refresh(pipe) == {B}  # back: those who wait are offered its slots


@pytest.mark.parametrize("lost", ["trimmed", "too many"])
async def test_who_has_missed_changes_reads_everything(wire, pipe, lost):
    snapshot = Snapshot()
    view.publish(wire, [offering(A, "m"), offering(B, "m")])
    await snapshot.refresh(pipe)
    view.publish(wire, [offering(A, "m", state="revoked"), offering(B, "m", ttft=30.0)])
    if lost == "trimmed":
        wire.xtrim(view.CHANGES, maxlen=1)
    else:
        for _ in range(600):
            wire.xadd(view.CHANGES, {"n": C})
    assert await snapshot.refresh(pipe) >= {A, B}
    assert ttfts(snapshot) == {B: 30.0}
    pipe.asked.clear()
    assert await snapshot.refresh(pipe) == frozenset()
    assert "HGETALL" not in pipe.asked


async def test_what_is_usual_corrects_the_others_only_when_it_moves(wire, pipe):
    snapshot = Snapshot()
    view.publish(wire, [offering(n, "m", speed=100.0) for n in (A, B)] + [offering(C, "m", speed=80.0)])
    await snapshot.refresh(pipe)

    def weights() -> dict[str, float]:
        return {node.id: m.weight for node, m in snapshot.by_model["m"]}

    assert weights() == {A: 1.0, B: 1.0, C: 0.8}
    view.publish(wire, [offering(A, "m", speed=101.0), offering(B, "m", speed=101.0)])
    await snapshot.refresh(pipe)
    assert weights() == {A: 1.0, B: 1.0, C: 0.8}
    view.publish(wire, [offering(A, "m", speed=160.0), offering(B, "m", speed=160.0)])
    await snapshot.refresh(pipe)
    assert weights() == {A: 1.0, B: 1.0, C: 0.5}
