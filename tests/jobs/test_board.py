"""The board on a real Redis: each verb, one step at a time."""

from __future__ import annotations

import pytest
import redis

from gputorrent.embedded import RedisServer
from gputorrent.redis import piped
from jobs.board import Board, Bound, Full, Held, Placed, Waiting
from jobs.errors import NotPermitted
from nodes import view
from tests.jobs.scripted import ScriptedNode, work
from worker_agent.contract import decode_work, inbox_key, reply_key

A, B = "a" * 16, "b" * 16


def open_web(wire, web: str) -> None:
    """A web process that lives and listens."""
    wire.set(f"gt:web:{web}", "1")
    wire.xadd(reply_key(web), {"m": b"\x90"})
    wire.xtrim(reply_key(web), 0)


def announced(wire, web: str) -> list[str]:
    return [fields[b"p"].decode() for _, fields in wire.xrange(reply_key(web))]


def inbox_of(wire) -> list[str]:
    return [decode_work(fields[b"m"]).job for _, fields in wire.xrange(inbox_key(A))]


def left_over(wire) -> list[bytes]:
    return wire.keys("gt:board:*")


# -- reserve -------------------------------------------------------------------------------------------


async def test_the_first_of_the_order_with_room_gets_the_work(wire, node, reserve):
    other = ScriptedNode(wire, B, slots=2)
    assert await reserve("j1") == Placed(A)
    assert await reserve("j2") == Placed(B)
    assert await reserve("j3", order=(B, A)) == Placed(B)
    assert node.inbox() == [work("j1")]
    assert other.inbox() == [work("j2"), work("j3")]


async def test_asking_twice_takes_one_slot_and_delivers_once(node, reserve, board):
    assert await reserve() == await reserve() == Placed(A)
    assert len(node.inbox()) == 1
    assert await reserve("j2") == await reserve("j2") == Waiting(0)
    assert await board.depths(["m"]) == (1, {"m": 1})


async def test_what_a_caller_waits_for_is_never_written_to_disk(tmp_path, settings):
    with RedisServer(tmp_path, persist=True) as server:
        settings.REDIS_URL = server.url
        async with piped() as pipe:
            with redis.Redis.from_url(server.url) as wire:
                ScriptedNode(wire, A, slots=2)
                board = Board(pipe)
                for job, reply in (("j1", "web"), ("j2", "")):
                    given = work(job, body=f"prompt of {job}".encode(), reply=reply)
                    assert await board.reserve(given, [A], tenant="t", wait_seconds=60) == Placed(A)
                assert inbox_of(wire) == ["j1", "j2"]
        server.stop()
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.aof"))
        assert b"prompt of j2" in kept
        assert b"prompt of j1" not in kept
        server.start()
        with redis.Redis.from_url(server.url) as wire:
            assert inbox_of(wire) == ["j2"]
            assert wire.hlen(f"gt:board:slots:{A}/m") == 2  # the recount sees to the other


async def test_a_second_attempt_takes_a_slot_of_its_own(wire, reserve, board):
    ScriptedNode(wire, A, slots=2)
    await reserve(attempt=1)
    await reserve(attempt=2)
    assert await board.loads() == {f"{A}/m": 2}


async def test_a_node_whose_lease_is_gone_gets_nothing(node, reserve):
    node.die()
    assert await reserve() == Waiting(0)
    assert node.inbox() == []


async def test_a_place_that_routing_does_not_know_has_no_slots(node, reserve):
    assert await reserve(model="other") == Waiting(0)


async def test_what_depends_on_something_that_does_not_hold_is_not_done(wire, node, reserve, board):
    for other in ({}, {"order": ()}, {"wait_seconds": 0}, {"others": lambda: [A], "order": (B,)}):
        with pytest.raises(NotPermitted):
            await reserve(proof=("leave", "j1"), **other)
    assert (node.inbox(), await board.loads(), await board.depths(["m"])) == ([], {}, (0, {"m": 0}))
    wire.hset("leave", "j1", "")
    assert await reserve(proof=("leave", "j1")) == Placed(A)
    wire.delete("leave")
    assert await reserve(proof=("leave", "j1")) == Placed(A)  # asked again: it is placed already


async def test_who_does_not_want_to_wait_is_told_that_it_is_full(node, reserve):
    await reserve("j1")
    answer = await reserve("j2", wait_seconds=0)
    assert (answer, answer.bound) == (Full(0), Bound.SLOTS)


async def test_the_queue_of_a_model_is_bounded(wire, node, reserve, settings):
    settings.QUEUE_PER_MODEL = 2
    ScriptedNode(wire, B, model="other")
    await reserve("j0")
    asked = [await reserve(f"j{n}", reply="w1") for n in (1, 2, 3)]
    assert asked == [Waiting(0), Waiting(1), Full(2)]
    assert asked[2].bound == Bound.MODEL
    await reserve("o0", model="other")
    assert await reserve("o1", model="other", reply="w1") == Waiting(0)


async def test_all_queues_together_are_bounded(wire, node, reserve, settings):
    settings.QUEUE_TOTAL = 1
    ScriptedNode(wire, B, model="other")
    for model in ("m", "other"):
        await reserve(f"{model}-1", model=model)
    assert await reserve("m-2", reply="w1") == Waiting(0)
    answer = await reserve("other-2", model="other", reply="w1")
    assert (answer, answer.bound) == (Full(0), Bound.TOTAL)


async def test_no_tenant_fills_a_queue_alone(wire, node, reserve, board, settings):
    settings.QUEUE_PER_KEY = 2
    ScriptedNode(wire, B, model="other")
    await reserve("j0")
    await reserve("o0", model="other")
    assert await reserve("a1", tenant="A", reply="w1") == Waiting(0)
    assert await reserve("a2", tenant="A", reply="w1", model="other") == Waiting(0)
    for model in ("m", "other"):
        answer = await reserve(f"a3-{model}", tenant="A", reply="w1", model=model)
        assert (answer, answer.bound) == (Full(1), Bound.TENANT)
    assert await reserve("b1", tenant="B", reply="w1") == Waiting(1)
    await board.leave("a1")
    assert await reserve("a4", tenant="A", reply="w1") == Waiting(1)
    wire.set("gt:web:w1", "1")
    await board.release(B, "other", "o0", 1)  # a2 is placed, and does not wait any more
    assert await reserve("a5", tenant="A", reply="w1") == Waiting(2)


async def test_who_nobody_waits_for_fills_half_of_a_queue_at_most(node, reserve, settings):
    settings.QUEUE_PER_MODEL = 4
    await reserve("j0")
    assert [await reserve(f"d{n}") for n in (1, 2, 3)] == [Waiting(0), Waiting(1), Full(2)]
    asked = [await reserve(f"i{n}", reply="w1") for n in (1, 2, 3)]
    assert asked == [Waiting(2), Waiting(3), Full(4)]


async def test_the_bytes_under_way_to_a_node_are_bounded(wire, reserve, board, settings):
    settings.NODE_BYTES = 5000
    node = ScriptedNode(wire, A, slots=9)
    assert await reserve("j1", body=b"x" * 20_000) == Placed(A)  # alone it may be as large as it is
    assert await reserve("j2", body=b"x") == Waiting(0)
    await board.release(A, "m", "j1", 1)
    assert [w.job for w in node.inbox()] == ["j1", "j2"]
    assert await reserve("j3", body=b"x" * 3000) == Placed(A)
    assert await reserve("j4", body=b"x" * 3000) == Waiting(0)


# -- release -------------------------------------------------------------------------------------------


async def test_a_slot_given_back_goes_to_the_next_in_the_same_step(wire, node, reserve, board):
    open_web(wire, "w1")
    await reserve("j1")
    await reserve("j2", reply="w1")
    node.inbox()
    assert await board.release(A, "m", "j1", 1)
    assert node.inbox() == [work("j2", reply="w1")]
    assert announced(wire, "w1") == [f"j2:1 {work('j2').lease.hex()} {A}"]
    assert await board.position("j2") is None
    assert await board.loads() == {f"{A}/m": 1}


async def test_a_slot_given_back_twice_is_given_back_once(wire, reserve, board):
    ScriptedNode(wire, A, slots=1)
    await reserve("j1")
    await reserve("j2")
    assert await board.release(A, "m", "j1", 1)
    assert not await board.release(A, "m", "j1", 1)
    assert await board.loads() == {f"{A}/m": 1}
    assert not await board.release(A, "m", "unknown", 1)


async def test_a_job_is_not_placed_where_it_has_failed(wire, node, reserve, board):
    other = ScriptedNode(wire, B)
    await reserve("j1", order=(A,))
    await reserve("j2", order=(B,))
    await reserve("barred", tried=(A,))
    await reserve("next")
    node.inbox(), other.inbox()
    await board.release(A, "m", "j1", 1)
    assert [w.job for w in node.inbox()] == ["next"]
    await board.release(B, "m", "j2", 1)
    assert [w.job for w in other.inbox()] == ["barred"]


async def test_a_waiter_whose_process_is_gone_is_dropped(wire, node, reserve, board):
    open_web(wire, "w2")
    await reserve("j1")
    await reserve("dead", reply="w1")
    await reserve("alive", reply="w2")
    node.inbox()
    await board.release(A, "m", "j1", 1)
    assert [w.job for w in node.inbox()] == ["alive"]
    assert await board.position("dead") is None
    assert await board.depths(["m"]) == (0, {"m": 0})


async def test_no_reply_stream_is_made_for_a_process_that_has_closed_it(wire, node, reserve, board):
    wire.set("gt:web:w1", "1")
    await reserve("j1")
    await reserve("j2", reply="w1")
    await board.release(A, "m", "j1", 1)
    assert not wire.exists(reply_key("w1"))


# -- the rest ------------------------------------------------------------------------------------------


async def test_leaving_takes_a_job_off_the_board(wire, node, reserve, board):
    await reserve("j1")
    await reserve("j2")
    assert await board.leave("j2")
    assert not await board.leave("j2")
    assert not await board.leave("j1")
    node.inbox()
    await board.release(A, "m", "j1", 1)
    assert node.inbox() == []
    assert left_over(wire) == []


async def test_positions_and_depths(node, reserve, board):
    await reserve("j0")
    await reserve("j1")
    await reserve("j2")
    assert [await board.position(j) for j in ("j0", "j1", "j2", "nobody")] == [None, 0, 1, None]
    assert await board.depths(["m", "other"]) == (2, {"m": 2, "other": 0})


async def test_what_is_held_can_be_listed(wire, board, reserve):
    ScriptedNode(wire, A, model="org/model-1", slots=2)
    await reserve("j1", model="org/model-1", reply="w1")
    await reserve("j2", attempt=3, model="org/model-1")
    held = sorted(await board.held(), key=lambda h: h.job)
    now = int(wire.time()[0])
    assert all(abs(h.placed_at_ms / 1000 - now) < 60 for h in held)
    assert held == [
        Held(A, "org/model-1", "j1", 1, work("j1").lease, "w1", held[0].placed_at_ms),
        Held(A, "org/model-1", "j2", 3, work("j2", 3).lease, "", held[1].placed_at_ms),
    ]
    assert await board.loads() == {f"{A}/org/model-1": 2}


async def test_who_has_waited_too_long_is_found(node, reserve, board):
    await reserve("j0")
    await reserve("patient")
    await reserve("hasty", wait_seconds=0.001)
    overdue: list[str] = []
    for _ in range(1000):
        overdue = await board.overdue()
        if overdue:
            break
    assert overdue == ["hasty"]


async def test_lowered_capacity_stops_placing_until_it_is_free_again(wire, reserve, board):
    node = ScriptedNode(wire, A, slots=2)
    await reserve("j1")
    await reserve("j2")
    await reserve("j3")
    node.inbox()
    node.publish(slots=1)
    await board.release(A, "m", "j1", 1)
    assert node.inbox() == []
    await board.release(A, "m", "j2", 1)
    assert [w.job for w in node.inbox()] == ["j3"]


async def test_new_capacity_is_offered_to_those_who_wait(wire, node, reserve, board):
    for n in range(4):
        await reserve(f"j{n}")
    node.inbox()
    node.publish(slots=3)
    assert await board.fill([f"{A}/m", f"{B}/m"]) == 2
    assert [w.job for w in node.inbox()] == ["j1", "j2"]
    node.die()
    node.publish(slots=9)
    assert await board.fill([f"{A}/m"]) == 0


async def test_a_long_row_of_barred_jobs_does_not_block_the_one_behind(node, reserve, board):
    await reserve("j0")
    for n in range(40):
        await reserve(f"barred-{n:02}", tried=(A,))
    await reserve("welcome")
    node.inbox()
    await board.release(A, "m", "j0", 1)
    assert [w.job for w in node.inbox()] == ["welcome"]


async def test_nothing_is_left_when_everything_is_given_back(wire, node, reserve, board):
    open_web(wire, "w1")
    ScriptedNode(wire, B, slots=2)
    jobs = [f"j{n}" for n in range(8)]
    for n, job in enumerate(jobs):
        await reserve(job, tenant=str(n % 3), reply="w1")
    while held := await board.held():
        for h in held:
            await board.release(h.node, h.model, h.job, h.attempt)
    assert await board.depths(["m"]) == (0, {"m": 0})
    assert left_over(wire) == []


async def test_the_board_works_again_after_redis_has_forgotten_the_script(wire, node, reserve, board):
    await reserve("j1")
    wire.script_flush()
    assert await board.release(A, "m", "j1", 1)


async def test_only_places_of_ready_models_on_working_nodes_take_work(wire, node, reserve):
    node.node.state = "draining"
    node.publish()
    assert wire.hgetall(view.SLOTS) == {}
    assert await reserve() == Waiting(0)


async def test_a_node_outside_only_gets_nothing_that_waits(board, wire, reserve):
    node, other = (ScriptedNode(wire, id_) for id_ in (A, B))
    node.publish(slots=0)
    assert isinstance(await reserve(order=(A,), only=(A,)), Waiting)
    assert isinstance(await reserve("j2", order=(A,), only=()), Waiting)
    assert await board.fill([other.place]) == 0
    node.publish(slots=5)
    assert await board.fill([node.place, other.place]) == 1
    assert [w.job for w in node.inbox()] == ["j1"]


# -- many nodes, many waiting --------------------------------------------------------------------------


async def test_the_others_are_asked_for_only_when_none_of_the_first_will_do(wire, board, reserve):
    nodes = [ScriptedNode(wire, f"{n:016x}") for n in range(4)]
    asked: list[int] = []

    def others() -> list[str]:
        asked.append(1)
        return [n.id for n in nodes[2:]]

    first = tuple(n.id for n in nodes[:2])
    for n, node in enumerate(nodes):
        assert await reserve(f"j{n}", order=first, others=others) == Placed(node.id)
        assert len(asked) == max(0, n - 1)
    assert await reserve("j3", order=first, others=others) == Placed(nodes[3].id)  # asked again
    assert await reserve("w0", order=first, others=others) == Waiting(0)
    seen = len(asked)
    assert await reserve("w1", order=first, others=others) == Waiting(1)
    assert len(asked) == seen  # w0 would have had any slot that is free
    nodes[2].inbox()
    await board.release(nodes[2].id, "m", "j2", 1)
    assert [item.job for item in nodes[2].inbox()] == ["w0"]


@pytest.mark.parametrize("barred", [{"tried": ["x" * 16]}, {"only": frozenset({"x" * 16})}])
async def test_behind_one_that_may_not_go_everywhere_the_others_are_asked_for(wire, reserve, barred):
    """A slot may be free although somebody waits."""
    full, free = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await reserve("j0", order=(full.id,))
    await reserve("w0", order=(full.id,), **barred)
    assert await reserve("j1", order=(full.id,), others=lambda: [free.id]) == Placed(free.id)


async def test_who_may_go_anywhere_is_put_on_a_shut_place_only_if_the_others_will_not_do(wire, reserve):
    wire.set("gt:web:w", "1")
    shut, free = ScriptedNode(wire, A), ScriptedNode(wire, B)
    wire.hset("gt:breakers", shut.place, "1 99999999999999 6 -")
    wire.hset(view.SLOTS, free.place, 0)
    assert await reserve("j0", order=(shut.id,), others=lambda: [free.id]) == Placed(shut.id)
    wire.hset(view.SLOTS, free.place, 1)
    assert await reserve("j1", order=(shut.id,), others=lambda: [free.id]) == Placed(free.id)


@pytest.mark.parametrize("at_once", [False, True])
async def test_all_that_wait_are_found_page_by_page(wire, node, reserve, board, settings, at_once):
    settings.QUEUE_PER_MODEL = settings.QUEUE_PER_KEY = 4000
    await reserve("j0")
    jobs = {f"w{n}" for n in range(1203)}
    for job in jobs:
        await reserve(job)
    if at_once:  # all give up at the same moment
        wire.zadd("gt:board:waiting", dict.fromkeys(jobs, 5))
    found = [w.job for w in await board.waiting()]
    assert (len(found), set(found)) == (1203, jobs)
    wire.delete(*[f"gt:board:wait:w{n}" for n in range(1203) if n % 3])
    assert await board.prune(["m"]) == 2 * 802
    assert sorted(w.job for w in await board.waiting()) == sorted(f"w{n}" for n in range(0, 1203, 3))
    assert (wire.zcard("gt:board:queue:m"), await board.prune(["m"])) == (401, 0)
