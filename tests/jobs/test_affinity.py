"""A chat goes back to the node that has its beginning, in one web process and across them."""

from __future__ import annotations

import pytest

from jobs import prompt
from jobs.affinity import STREAM, STREAM_MAXLEN, TTL_SECONDS, Affinity
from jobs.prompt import NO_PREFIX, Prefix
from tests.jobs.desk import Desk
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Done

A, B = "a" * 16, "b" * 16
ONE, TWO = Prefix((b"1",), (b"1",)), Prefix((b"2", b"1"), (b"2",))


def chat(*texts: str, tenant: str = "0") -> Prefix:
    roles = ("user", "assistant")
    return prompt.of_chat(tenant, "m", [(roles[n % 2], text) for n, text in enumerate(texts)])


def test_the_longest_beginning_that_is_known_wins():
    affinity = Affinity()
    affinity.remember(ONE, A)
    assert affinity.node_for(TWO) == A
    affinity.remember(TWO, B)
    assert (affinity.node_for(TWO), affinity.node_for(ONE)) == (B, A)
    assert affinity.node_for(NO_PREFIX) == ""


def test_what_is_old_is_forgotten_and_what_is_used_is_kept():
    now = [0.0]
    affinity = Affinity(lambda: now[0], most=3)
    affinity.remember(ONE, A)
    now[0] = TTL_SECONDS - 1
    assert affinity.node_for(ONE) == A
    now[0] = TTL_SECONDS
    assert affinity.node_for(ONE) == ""
    affinity.remember(ONE, A)
    for n in range(5):
        affinity.remember(Prefix((), (b"other%d" % n,)), B)
        affinity.remember(ONE, A)
    assert len(affinity) == 3
    assert affinity.node_for(ONE) == A


async def test_processes_tell_each_other_what_is_new(pipe, wire):
    one, two = Affinity(), Affinity()
    one.remember(ONE, A)
    await one.exchange(pipe, "web1")
    await one.exchange(pipe, "web1")
    assert wire.xlen(STREAM) == 1
    await two.exchange(pipe, "web2")
    assert two.node_for(ONE) == A
    two.remember(ONE, B)
    await two.exchange(pipe, "web2")
    await one.exchange(pipe, "web1")
    assert one.node_for(ONE) == B


async def test_a_process_is_not_told_its_own_old_news(pipe):
    affinity = Affinity()
    affinity.remember(ONE, A)
    await affinity.exchange(pipe, "web1")
    affinity.remember(ONE, B)
    await affinity.exchange(pipe, "web1")
    assert affinity.node_for(ONE) == B


async def test_what_is_told_is_bounded(pipe, wire):
    affinity = Affinity()
    for n in range(3 * STREAM_MAXLEN):
        affinity.remember(Prefix((), (b"%d" % n,)), A)
        await affinity.exchange(pipe, "web1")
    assert wire.xlen(STREAM) < 2 * STREAM_MAXLEN
    for n in range(20_000):
        affinity.remember(Prefix((), (b"name%04d" % n,)), A)
    await affinity.exchange(pipe, "web1")
    (_, fields), *_ = wire.xrevrange(STREAM, count=1)
    assert len(fields[b"m"]) < 16_384


async def test_an_entry_of_another_version_and_an_emptied_redis_do_no_harm(pipe, wire):
    one, two = Affinity(), Affinity()
    wire.xadd(STREAM, {"m": b"nonsense"})
    wire.xadd(STREAM, {"x": b""})
    await one.exchange(pipe, "web1")
    wire.delete(STREAM)
    two.remember(ONE, A)
    await two.exchange(pipe, "web2")
    await one.exchange(pipe, "web1")
    assert one.node_for(ONE) == A


# -- with nodes ----------------------------------------------------------------------------------------


async def ask(desk: Desk, prefix: Prefix, nodes: list[ScriptedNode]) -> str:
    """One request, answered by whichever node gets it: which one that was."""
    asking = desk.ask(stream=False, prefix=prefix)
    for_whom = await until(lambda: [(node, work) for node in nodes for work in node.inbox()])
    (node, work), = for_whom  # fmt: skip
    node.done(work)
    assert isinstance(await asking.first(), Done)
    await desk.settled()
    return str(node.id)


@pytest.fixture
async def nodes(desk, wire):
    both = [ScriptedNode(wire, A, slots=4), ScriptedNode(wire, B, slots=4)]
    await desk.refresh()
    return both


async def test_each_chat_stays_where_it_began_and_new_ones_spread(desk, nodes):
    chats = {n: [f"chat {n}"] for n in range(4)}
    seen: dict[int, set[str]] = {n: set() for n in chats}
    for turn in range(4):
        for n, texts in chats.items():
            seen[n].add(await ask(desk, chat(*texts), nodes))
            texts += [f"answer {turn}", f"question {turn}"]
    assert all(len(where) == 1 for where in seen.values())
    assert sorted(where.pop() for where in seen.values()) == [A, A, B, B]


async def test_the_record_says_that_the_prefix_chose(desk, nodes):
    await ask(desk, chat("x"), nodes)
    await desk.settled()
    asking = desk.ask(stream=False, prefix=chat("x", "y", "z"))
    work = await nodes[0].take()
    nodes[0].done(work)
    await asking.first()
    row = await desk.row(asking.job)
    assert row.why == "score 0.100 = loaded x free 1.00 x latency 1.00 x weight 0.10 (CPU), prefix"


async def test_a_chat_leaves_a_node_that_is_busy_or_away(desk, nodes):
    where = await ask(desk, chat("x"), nodes)
    home = next(n for n in nodes if n.id == where)
    other = next(n for n in nodes if n.id != where)
    held = []
    for n in range(3):
        held.append(desk.ask(prefix=chat("x", "y", str(n))))
        await home.take()
        await desk.heard()
    assert await ask(desk, chat("x", "y", "z"), nodes) == other.id
    for asking in held:
        await asking.leave()
    home.die()
    await desk.refresh()
    assert await ask(desk, chat("x", "q", "q"), nodes) == other.id


async def test_another_web_process_sends_the_chat_to_the_same_node(desk, nodes):
    where = await ask(desk, chat("x"), nodes)
    await ask(desk, chat("y"), nodes)
    await desk.refresh()
    second = Desk()
    await second.dispatcher.start()
    try:
        await second.refresh()
        for _ in range(2):
            assert await ask(second, chat("x", "a", "b"), nodes) == where
    finally:
        await second.dispatcher.stop()


async def test_a_request_that_waits_is_not_given_to_a_node_whose_context_is_too_small(desk, wire):
    small = ScriptedNode(wire, A, slots=1, max_model_len=2048)
    large = ScriptedNode(wire, B, slots=1, max_model_len=8192)
    await desk.refresh()
    short = [desk.ask(stream=False) for _ in range(2)]  # equal nodes take turns: one each
    works = [await small.take(), await large.take()]
    long = desk.ask(stream=False, tokens_wanted=5000)
    await until(lambda: long.job)
    await desk.heard()
    small.done(works[0])
    await short[0].first()
    await desk.settled()
    assert small.inbox() == []
    large.done(works[1])
    await short[1].first()
    large.done(await large.take())
    assert isinstance(await long.first(), Done)
