"""Who of those that wait comes next."""

from __future__ import annotations

from math import ceil

import pytest

from jobs.board import Full, Waiting
from jobs.refusal import queue_full, retry_after
from tests.jobs.scripted import ScriptedNode

A = "a" * 16


async def order_of(node, board, first="j0"):
    """Who is placed, one after the other, as slots come back."""
    seen: list[str] = []
    holder = first
    while True:
        node.inbox()
        await board.release(A, "m", holder, 1)
        placed = node.inbox()
        if not placed:
            return seen
        holder = placed[0].job
        seen.append(holder)


async def test_one_key_comes_in_the_order_of_asking(node, reserve, board):
    await reserve("j0")
    for n in range(5):
        assert await reserve(f"q{n}") == Waiting(n)
    assert await order_of(node, board) == ["q0", "q1", "q2", "q3", "q4"]


async def test_a_key_with_one_job_does_not_wait_behind_ten_of_another(node, reserve, board):
    await reserve("j0")
    for n in range(10):
        await reserve(f"a{n}", tenant="A")
    await reserve("b0", tenant="B")
    placed = await order_of(node, board)
    assert placed[:3] == ["a0", "b0", "a1"]
    assert sorted(placed) == sorted([f"a{n}" for n in range(10)] + ["b0"])


async def test_who_comes_late_gets_no_credit_for_the_time_before(node, reserve, board):
    await reserve("j0")
    for n in range(6):
        await reserve(f"a{n}", tenant="A")
    for n in range(3):  # a0, a1 and a2 are placed
        node.inbox()
        await board.release(A, "m", f"a{n - 1}" if n else "j0", 1)
    for n in range(3):
        await reserve(f"b{n}", tenant="B")
    assert (await order_of(node, board, "a2"))[:4] == ["b0", "a3", "b1", "a4"]


async def test_priority_comes_before_fairness(node, reserve, board):
    await reserve("j0")
    await reserve("deferred", tenant="C", priority=-1)
    await reserve("usual-1", tenant="A")
    await reserve("usual-2", tenant="A")
    await reserve("urgent", tenant="A", priority=1)
    assert await order_of(node, board) == ["urgent", "usual-1", "usual-2", "deferred"]


async def test_a_tenants_deferred_jobs_do_not_set_its_urgent_ones_back(node, reserve, board):
    await reserve("j0")
    for n in range(5):
        await reserve(f"night{n}", tenant="A", priority=-1)
    await reserve("b0", tenant="B")
    await reserve("b1", tenant="B")
    await reserve("a0", tenant="A")
    assert (await order_of(node, board))[:3] == ["a0", "b0", "b1"]


async def test_who_left_without_a_turn_is_not_set_back_for_it(node, reserve, board):
    await reserve("j0")
    for n in range(9):
        await reserve(f"a{n}", tenant="A")
    for n in range(4):
        await reserve(f"b{n}", tenant="B")
    for n in range(9):
        await board.leave(f"a{n}")
    await reserve("again", tenant="A")
    assert await order_of(node, board) == ["b0", "again", "b1", "b2", "b3"]


async def test_leaving_and_coming_again_wins_nothing(node, reserve, board):
    await reserve("j0")
    for n in range(3):
        await reserve(f"b{n}", tenant="B")
    placed, holder = [], "j0"
    for n in range(4):
        await reserve(f"a{n}", tenant="A")
        node.inbox()
        await board.release(A, "m", holder, 1)
        (item,) = node.inbox()
        holder = item.job
        placed.append(holder)
        await board.leave(f"a{n}")
    assert set(placed) >= {"b0", "b1"}


# -- a flood -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4, 7])
async def test_a_flood_of_one_key_costs_another_at_most_half_of_the_slots(wire, reserve, board, slots):
    """B's jobs end in order, one slot each time: the k-th comes no later than with half the slots alone."""
    node = ScriptedNode(wire, A, slots=slots)
    for n in range(500):
        await reserve(f"a{n:03}", tenant="A", reply="")
    mine = [f"b{n}" for n in range(10)]
    for job in mine:
        await reserve(job, tenant="B")
    running = [item.job for item in node.inbox()]
    rounds: dict[str, int] = {}
    for number in range(1, 40):  # all slots end at the same time, round by round
        ended, running = running, []
        for job in ended:
            await board.release(A, "m", job, 1)
            running += [item.job for item in node.inbox()]
        rounds |= dict.fromkeys(running, number)
        if mine[-1] in rounds:
            break
    for k, job in enumerate(mine, 1):
        assert rounds[job] <= ceil(k / (slots / 2)), f"{job} waited for {rounds[job]} rounds"


# -- how long it takes ---------------------------------------------------------------------------------


async def drained(wire, board, node, reserve, jobs: int, milliseconds: int) -> None:
    """`jobs` leave the queue, so far apart as if the last had left `milliseconds` before."""
    for n in range(jobs):
        await reserve(f"w{n}")
    for n in range(jobs):
        await board.release(A, "m", f"w{n - 1}" if n else "j0", 1)
        node.inbox()
        if wire.exists("gt:board:turns:m"):
            wire.hincrby("gt:board:turns:m", "last", -milliseconds)


async def test_the_wait_is_estimated_from_the_drain_rate(wire, node, reserve, board):
    await reserve("j0")
    assert (await reserve("x0")).interval is None
    assert await board.estimate("x0") == (0, None)
    await board.leave("x0")
    await drained(wire, board, node, reserve, 8, 3000)
    for n in range(3):
        answer = await reserve(f"x{n}")
        assert answer == Waiting(n)
        assert answer.interval == pytest.approx(3.0, rel=0.2)
    at, seconds = await board.estimate("x2")
    assert (at, seconds) == (2, pytest.approx(9.0, rel=0.2))
    assert await board.estimate("j0") is None
    answer = await reserve("y", wait_seconds=0)
    assert answer == Full(3)
    assert answer.interval == pytest.approx(3.0, rel=0.2)


async def test_the_time_in_which_nobody_waited_is_no_drain(wire, node, reserve, board):
    await reserve("j0")
    await drained(wire, board, node, reserve, 1, 3000)
    assert not wire.exists("gt:drain:m")


async def test_several_slots_at_once_drain_so_much_faster(wire, node, reserve, board):
    await reserve("j0")
    for n in range(9):
        await reserve(f"w{n}")
    await board.release(A, "m", "j0", 1)
    wire.hincrby("gt:board:turns:m", "last", -4000)
    node.publish(slots=5)
    assert await board.fill([f"{A}/m"]) == 4
    assert (await board.estimate("w8"))[1] == pytest.approx(4.0, rel=0.2)


def test_the_time_to_come_again_is_what_the_queue_takes():
    assert retry_after(10, 1.5) == 15
    assert retry_after(1, 0.001) == 1
    assert retry_after(1000, 9.0) == 120
    assert retry_after(3, 0.7) == 3
    assert retry_after(10, None) is None
    assert queue_full("m", Full(40, 0.5)).retry_after == 20
    assert queue_full("m", Full(40)).retry_after == 5
