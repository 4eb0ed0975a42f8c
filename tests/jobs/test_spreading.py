"""Requests spread over nodes in proportion to their weights."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jobs.spreading import LEAD, Spreading, Turns, drawn
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import inbox_key

A, B, C = (letter * 16 for letter in "abc")


@dataclass(frozen=True)
class Ranked:
    node: str
    weight: float = 1.0
    in_turn: bool = True


def first_of(spreading: Spreading, nodes: list[Ranked]) -> list[Ranked]:
    turns = spreading.turns("m")
    return sorted(nodes, key=lambda r: (turns.start(r.node), r.node))


def picks(spreading: Spreading, nodes: list[Ranked], count: int) -> list[str]:
    seen = []
    for _ in range(count):
        order = first_of(spreading, nodes)
        spreading.take("m", order).settle(order[0])
        seen.append(order[0].node)
    return seen


def test_equal_nodes_alternate():
    assert picks(Spreading(), [Ranked("a"), Ranked("b")], 6) == ["a", "b"] * 3


def test_a_heavier_node_comes_more_often_and_evenly():
    seen = picks(Spreading(), [Ranked("a", 2.0), Ranked("b"), Ranked("c")], 40)
    for at in range(0, 40, 4):
        assert Counter(seen[at : at + 4]) == {"a": 2, "b": 1, "c": 1}


@given(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6), st.integers(0, 300))
def test_shares_converge_to_the_weights(weights, count):
    nodes = [Ranked(f"n{i}", w) for i, w in enumerate(weights)]
    seen = Counter(picks(Spreading(), nodes, count))
    for node in nodes:
        exact = count * node.weight / sum(weights)
        # Start-time fair queueing is never further from the exact share than a turn of each of the others.
        assert abs(seen[node.node] - exact) <= 1 + (len(nodes) - 1) * max(1.0, node.weight / sum(weights))


def test_a_newcomer_is_not_owed_the_time_before_it_came():
    spreading, old = Spreading(), [Ranked("a"), Ranked("b")]
    picks(spreading, old, 100)
    assert Counter(picks(spreading, [*old, Ranked("c")], 30)) == {"a": 10, "b": 10, "c": 10}


def test_who_was_away_for_a_while_catches_up_on_nothing():
    spreading, both = Spreading(), [Ranked("a"), Ranked("b")]
    picks(spreading, both, 10)
    picks(spreading, both[:1], 50)
    assert Counter(picks(spreading, both, 10)) == {"a": 5, "b": 5}


def test_what_comes_out_of_turn_counts_but_not_for_ever():
    spreading, both = Spreading(), [Ranked("a"), Ranked("b")]
    for _ in range(50):
        spreading.take("m", both).settle(both[0])
    seen = picks(spreading, both, 20)
    assert seen[:3] == ["b"] * 3
    assert seen.count("a") >= 10 - LEAD


def test_a_turn_goes_to_the_node_that_was_really_used():
    spreading, both = Spreading(), [Ranked("a"), Ranked("b")]
    spreading.take("m", both).settle(both[1])
    assert first_of(spreading, both)[0].node == "a"
    spreading.take("m", both).settle(None)
    assert first_of(spreading, both)[0].node == "a"


def test_requests_that_come_before_the_board_has_answered_go_to_different_nodes():
    spreading, both = Spreading(), [Ranked("a"), Ranked("b")]
    spreading.take("m", first_of(spreading, both))
    assert first_of(spreading, both)[0].node == "b"


def test_models_do_not_share_turns_and_old_ones_are_forgotten():
    spreading = Spreading()
    for n in range(3000):
        spreading.take(f"m{n}", [Ranked("a")])
    assert spreading.turns("m0") == Turns()
    assert spreading.turns("m2999").ends
    assert len(spreading._ends) <= 1024
    for n in range(6000):
        spreading.take("m", [Ranked(f"n{n}")])
    assert len(spreading.turns("m").ends) <= 4096


def test_a_lot_falls_by_weight_and_the_same_for_the_same_job():
    nodes = [Ranked("a"), Ranked("b"), Ranked("c", 2.0)]
    seen: Counter[str] = Counter()
    for n in range(4000):
        turns = drawn(f"job{n}", nodes)
        seen[min("abc", key=turns.start)] += 1
    assert seen["c"] == pytest.approx(2000, rel=0.1)
    assert seen["a"] == pytest.approx(1000, rel=0.1)
    assert drawn("job", nodes) == drawn("job", nodes[::-1])


# -- on the real board ---------------------------------------------------------------------------------


def three_nodes(wire, slots=32):
    weights = {A: "1", B: "1", C: "2"}
    return [ScriptedNode(wire, id_, slots=slots, labels={"weight": w}) for id_, w in weights.items()]


async def answer(nodes) -> Counter[str]:
    """Answer whatever lies in the inboxes; how much each had."""
    await asyncio.sleep(0.001)
    had: Counter[str] = Counter()
    for node in nodes:
        for work in node.inbox():
            had[node.id] += 1
            node.done(work, body=b"{}")
    return had


async def spread(desk, nodes, count, at_once, *, all_together=False):
    """How many requests each node had, with so many under way at all times. `all_together`: none is answered
    before all are placed."""
    await desk.refresh()
    had: Counter[str] = Counter()
    limit = asyncio.Semaphore(at_once)

    async def ask():
        async with limit:
            await desk.ask(stream=False).first()

    asking = [asyncio.create_task(ask()) for _ in range(count)]
    if all_together:
        await until(lambda: sum(node.wire.xlen(inbox_key(node.id)) for node in nodes) == count)
    while not all(task.done() for task in asking):
        had += await answer(nodes)
    await asyncio.gather(*asking)
    await desk.settled()
    return had


@pytest.mark.parametrize(("at_once", "slots"), [(1, 32), (16, 32), (16, 16)])
async def test_nodes_of_weights_1_1_2_share_400_requests_so(desk, wire, at_once, slots):
    had = await spread(desk, three_nodes(wire, slots), 400, at_once)
    assert sum(had.values()) == 400
    assert had[A] == pytest.approx(100, abs=10)
    assert had[B] == pytest.approx(100, abs=10)
    assert had[C] == pytest.approx(200, abs=20)


async def test_a_node_whose_slots_are_just_its_share_gets_all_of_it(desk, wire):
    # In waves: whatever came while the node is full for a moment would go to the others, with reason.
    nodes, had = three_nodes(wire, slots=8), Counter[str]()
    for _ in range(25):
        had += await spread(desk, nodes, 16, at_once=16, all_together=True)
    assert sum(had.values()) == 400
    assert had[A] == pytest.approx(100, abs=10)
    assert had[B] == pytest.approx(100, abs=10)


async def test_it_has_most_of_it_when_they_come_as_others_end(desk, wire):
    had = await spread(desk, three_nodes(wire, slots=8), 400, at_once=16)
    assert sum(had.values()) == 400
    assert 150 <= had[C] <= 210  # 133 would be the same for all


async def test_a_full_node_gets_no_turn_and_the_other_is_charged(desk, wire):
    full, free = ScriptedNode(wire, A, slots=1), ScriptedNode(wire, B, slots=8)
    await desk.refresh()
    held = desk.ask()
    await full.take()
    for _ in range(3):
        asking = desk.ask(stream=False)
        free.done(await free.take())
        await asking.first()
    await held.leave()
