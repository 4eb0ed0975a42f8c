"""A web process finds which of its jobs the board or their node does not have, and what is too much."""

from __future__ import annotations

import time

import msgspec
import pytest

from jobs.errors import UpstreamFailed
from jobs.interactive import new_job_id
from nodes import listing, view
from nodes.listing import Listing
from tests.jobs.deferred import healed
from tests.jobs.scripted import ScriptedNode, until, work


@pytest.fixture
async def node(desk, wire) -> ScriptedNode:
    node = ScriptedNode(wire)
    await desk.refresh()
    return node


def lists(wire, node: ScriptedNode, *attempts: str) -> None:
    """What the last two beats said."""
    both = Listing(time.time(), 1, frozenset(attempts), time.time() - 1, frozenset(attempts))
    wire.hset(listing.KEY, node.id, msgspec.msgpack.encode(both))


def placed_long_ago(wire, node: ScriptedNode, job: str) -> None:
    key, ref = f"gt:board:slots:{node.place}", f"{job}:1"
    lease, owner, size, placed_at = wire.hget(key, ref).decode().split(" ")
    wire.hset(key, ref, f"{lease} {owner} {size} {int(placed_at) - 60_000}")


async def recount(desk, times: int = 2) -> None:
    for _ in range(times):
        await desk.watch.recount()
        await desk.settled()


async def test_what_the_node_does_not_have_is_placed_again(desk, wire, node):
    asking = desk.ask()
    first = await node.take()
    placed_long_ago(wire, node, first.job)
    lists(wire, node)
    await recount(desk, 1)
    assert asking.job.current.outcome == ""  # its answer may lie in our stream
    await recount(desk, 1)
    second = await node.take()
    assert (second.job, second.attempt) == (first.job, 2)
    node.done(second)
    await asking.first()
    assert [t.outcome for t in asking.job.tries] == ["wire_lost", "done"]
    assert healed(wire) == {"lost_work": 1}
    assert await desk.held() == 0


async def test_a_stream_that_the_node_does_not_have_ends_with_an_error(desk, wire, node):
    asking = desk.ask()
    item = await node.take()
    node.chunk(item, 0, b"data: 1\n\n")
    await asking.first()
    placed_long_ago(wire, node, item.job)
    lists(wire, node)
    await recount(desk)
    with pytest.raises(UpstreamFailed):
        await asking.rest()
    assert await desk.held() == 0


@pytest.mark.parametrize("why", ["listed", "young", "no list", "once"])
async def test_what_the_node_has_goes_on(desk, wire, node, why):
    asking = desk.ask()
    item = await node.take()
    if why != "young":
        placed_long_ago(wire, node, item.job)
    if why != "no list":
        lists(wire, node, *([f"{item.job}:1"] if why == "listed" else []))
    await recount(desk, 1 if why == "once" else 3)
    if why == "once":
        lists(wire, node, f"{item.job}:1")
        await recount(desk, 1)
        lists(wire, node)
        await recount(desk, 1)
    node.done(item)
    await asking.first()
    assert [t.outcome for t in asking.job.tries] == ["done"]
    assert healed(wire) == {}


async def test_a_place_in_the_queue_for_nobody_is_given_up(desk, wire, node):
    held = desk.ask()
    item = await node.take()
    stranger = work(new_job_id(), reply=desk.dispatcher.mailbox.web)
    await desk.dispatcher.board.reserve(stranger, [node.id], tenant="t", wait_seconds=600)
    waiting = desk.ask()
    await until(lambda: wire.zcard("gt:board:waiting") == 2)
    await recount(desk, 1)
    assert wire.zcard("gt:board:waiting") == 2
    await recount(desk, 1)
    assert [w.job for w in await desk.dispatcher.board.waiting()] == [waiting.job.id]
    assert healed(wire) == {"waiter": 1}
    node.done(item)
    await held.first()
    node.done(await node.take())
    await waiting.first()


async def test_who_waits_but_stands_in_no_queue_is_placed_again(desk, wire, node):
    held = desk.ask()
    item = await node.take()
    waiting = desk.ask()
    await until(lambda: waiting.job)
    await desk.dispatcher.board.leave(waiting.job.id)
    await recount(desk)
    assert waiting.job.attempt == 1  # its reservation may be under way
    waiting.job.waiting_since -= 60
    await recount(desk)
    await until(lambda: wire.zcard("gt:board:waiting"))
    assert waiting.job.attempt == 2
    assert healed(wire) == {"lost_waiter": 1}
    node.done(item)
    await held.first()
    node.done(await node.take())
    await waiting.first()


async def test_soon_after_redis_came_back_empty_nobody_is_taken_for_gone(desk, wire, node):
    await desk.dispatcher.board.reserve(work(reply="other"), [node.id], tenant="t", wait_seconds=0)
    await recount(desk)
    wire.set("gt:gone:other", "1")  # absent for long
    wire.set(view.ALIVE, int(time.time()))
    await recount(desk)
    assert await desk.held() == 1
    wire.set(view.ALIVE, int(time.time()) - 60)
    await recount(desk)
    assert await desk.held() == 0
