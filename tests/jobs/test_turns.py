"""Who of those that wait comes next."""

from __future__ import annotations

from jobs.board import Waiting

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
