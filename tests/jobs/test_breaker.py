"""Circuit breakers on the board: when they open, who may probe, and that the last place is never shut."""

from __future__ import annotations

import pytest

from jobs import breaker
from jobs.board import Placed, Waiting
from jobs.breaker import Breaker, State, Verdict
from jobs.interactive import WIRE_LOST
from tests.jobs.deferred import age
from tests.jobs.scripted import ScriptedNode, work
from worker_agent.contract import Done, Failed, Outcome

A, B = "a" * 16, "b" * 16
PLACE = f"{A}/m"


@pytest.fixture
def other(wire) -> ScriptedNode:
    return ScriptedNode(wire, B, slots=9)


@pytest.fixture
def fail(board, reserve):
    """Place a job on a node and let it fail there."""
    count = iter(range(10_000))

    async def fail(node: str = A, verdict: Verdict = Verdict.FAULT, times: int = 1) -> None:
        for _ in range(times):
            job = f"fail{next(count)}"
            assert await reserve(job, order=(node,)) == Placed(node)
            assert await board.release(node, "m", job, 1, verdict)

    return fail


def time_is_over(wire, place: str = PLACE, seconds_ago: int = 1) -> None:
    """As if an open breaker had waited long enough."""
    opening, _, *rest = wire.hget("gt:breakers", place).decode().split(" ")
    until = (int(wire.time()[0]) - seconds_ago) * 1000
    wire.hset("gt:breakers", place, " ".join([opening, str(until), *rest]))


async def states(board) -> dict[str, State]:
    return {b.place: b.state for b in await board.breakers()}


async def seconds_to_probe(board, wire, place: str = PLACE) -> float:
    (found,) = (b for b in await board.breakers() if b.place == place)
    seconds, microseconds = wire.time()
    return found.until - seconds - microseconds / 1e6


# -- opening -------------------------------------------------------------------------------------------


async def test_more_than_five_faults_open_it(wire, node, other, board, reserve, fail):
    await fail(times=5)
    assert await board.breakers() == []
    await fail()
    (found,) = await board.breakers()
    assert (found.node, found.model, found.state, found.faults) == (A, "m", State.OPEN, 6)
    assert 9 < await seconds_to_probe(board, wire) <= 10
    assert await reserve("j1", order=(A, B)) == Placed(B)
    assert await reserve("j2", order=(A,)) == Waiting(0)


async def test_faults_of_more_than_a_minute_ago_do_not_count(wire, node, other, board, fail):
    await fail(times=5)
    long_ago = int(wire.time()[0]) * 1000 - 61_000
    for n in range(3):
        wire.lset(f"gt:faults:{PLACE}", n, long_ago)
    await fail(times=3)
    assert await board.breakers() == []
    await fail()
    assert await states(board) == {PLACE: State.OPEN}


async def test_the_window_is_forgotten_by_itself(wire, node, fail):
    await fail()
    assert 0 < wire.pttl(f"gt:faults:{PLACE}") <= 60_000


async def test_one_crash_with_a_full_batch_is_one_fault(wire, other, board, reserve, fail):
    ScriptedNode(wire, A, slots=20)
    for n in range(20):
        await reserve(f"j{n}", order=(A,))
    age(wire, 1)
    for n in range(20):
        await board.release(A, "m", f"j{n}", 1, Verdict.DOWN)
    assert wire.llen(f"gt:faults:{PLACE}") == 1
    await fail(times=4)
    assert await board.breakers() == []
    await fail(verdict=Verdict.DOWN)
    assert await states(board) == {PLACE: State.OPEN}


async def test_each_answer_that_is_an_error_counts(wire, other, board, reserve):
    ScriptedNode(wire, A, slots=6)
    for n in range(6):
        await reserve(f"j{n}", order=(A,))
    age(wire, 1)
    for n in range(6):
        await board.release(A, "m", f"j{n}", 1, Verdict.FAULT)
    assert await states(board) == {PLACE: State.OPEN}


async def test_a_fault_told_twice_counts_once(wire, node, board, reserve):
    await reserve("j1", order=(A,))
    await board.release(A, "m", "j1", 1, Verdict.FAULT)
    await board.release(A, "m", "j1", 1, Verdict.FAULT)
    assert wire.llen(f"gt:faults:{PLACE}") == 1


async def test_another_model_of_the_node_is_not_concerned(wire, node, other, board, reserve, fail):
    for id_ in (A, B):
        wire.hset("gt:nodes:slots", f"{id_}/n", 1)
    await fail(times=6)
    assert await reserve("j1", model="n", order=(A,)) == Placed(A)


# -- half open -----------------------------------------------------------------------------------------


async def test_one_probe_at_a_time(wire, other, board, reserve, fail):
    ScriptedNode(wire, A, slots=9)
    await fail(times=6)
    time_is_over(wire)
    assert await states(board) == {PLACE: State.HALF_OPEN}
    assert await reserve("probe", order=(A, B)) == Placed(A)
    assert await reserve("next", order=(A, B)) == Placed(B)
    await board.release(A, "m", "probe", 1)  # its caller left: that says nothing, and another may go
    assert await states(board) == {PLACE: State.HALF_OPEN}
    assert await reserve("again", order=(A, B)) == Placed(A)
    assert await reserve("after", order=(A, B)) == Placed(B)


async def test_a_success_closes_it_and_clears_its_faults(wire, node, other, board, reserve, fail):
    await fail(times=6)
    time_is_over(wire)
    await reserve("probe", order=(A, B))
    await board.release(A, "m", "probe", 1, Verdict.OK)
    assert await board.breakers() == []
    await fail(times=5)
    assert await board.breakers() == []
    await fail()
    assert 9 < await seconds_to_probe(board, wire) <= 10


async def test_a_failure_opens_it_again_for_twice_as_long_up_to_two_minutes(
    wire, node, other, board, reserve, fail
):
    await fail(times=6)
    for n, seconds in enumerate((20, 40, 80, 120, 120)):
        time_is_over(wire)
        await reserve(f"probe{n}", order=(A, B))
        await board.release(A, "m", f"probe{n}", 1, Verdict.DOWN)
        assert seconds - 1 < await seconds_to_probe(board, wire) <= seconds
        assert await reserve(f"j{n}", order=(A,)) == Waiting(0)
        await board.leave(f"j{n}")


async def test_what_was_under_way_before_neither_closes_nor_opens_it_again(wire, other, board, reserve, fail):
    ScriptedNode(wire, A, slots=9)
    await reserve("good", order=(A,))
    await reserve("bad", order=(A,))
    await fail(times=6)
    await board.release(A, "m", "good", 1, Verdict.OK)
    assert await states(board) == {PLACE: State.OPEN}
    time_is_over(wire)
    await board.release(A, "m", "bad", 1, Verdict.FAULT)
    assert await states(board) == {PLACE: State.HALF_OPEN}


async def test_who_waits_gets_to_probe_and_the_rest_waits_on(wire, other, board, reserve, fail):
    node = ScriptedNode(wire, A, slots=9)
    await fail(times=6)
    other.publish(slots=1)
    await reserve("j0", order=(B,))
    for n in (1, 2):
        assert await reserve(f"j{n}", order=(A, B)) == Waiting(n - 1)
    node.inbox()
    assert await board.fill([PLACE]) == 0
    time_is_over(wire)
    assert await board.fill([PLACE]) == 1
    assert [w.job for w in node.inbox()] == ["j1"]
    await board.release(A, "m", "j1", 1, Verdict.OK)  # and with it comes the next, in the same step
    assert [w.job for w in node.inbox()] == ["j2"]


async def test_one_that_nobody_probes_is_forgotten(wire, node, other, board, fail):
    await fail(times=6)
    time_is_over(wire, seconds_ago=590)
    assert await states(board) == {PLACE: State.HALF_OPEN}
    time_is_over(wire, seconds_ago=610)
    assert await board.breakers() == []
    assert not wire.exists("gt:breakers")


# -- the last one --------------------------------------------------------------------------------------


async def test_the_only_place_is_never_shut_and_closes_with_a_success(wire, node, board, reserve, fail):
    await fail(times=9)
    assert await states(board) == {PLACE: State.OPEN}
    assert await reserve("j1", order=(A,)) == Placed(A)
    await board.release(A, "m", "j1", 1, Verdict.OK)
    assert await board.breakers() == []


@pytest.mark.parametrize(
    "why", ["dead", "draining", "other model", "open too", "failed there", "not allowed"]
)
async def test_an_open_place_is_used_when_no_other_would_do(wire, node, other, board, reserve, fail, why):
    await fail(times=6)
    tried: tuple[str, ...] = ()
    only = frozenset({A}) if why == "not allowed" else None
    if why == "dead":
        other.die()
    elif why == "draining":
        other.node.state = "draining"
        other.publish()
    elif why == "other model":
        wire.hdel("gt:nodes:slots", f"{B}/m")
        ScriptedNode(wire, B, model="mm")
    elif why == "open too":
        await fail(B, times=6)
    elif why == "failed there":
        tried = (B,)
    assert await reserve("j1", order=(A,), tried=tried, only=only) == Placed(A)


async def test_who_waits_for_the_only_place_it_may_use_gets_it_though_it_is_open(
    wire, node, other, board, reserve, fail
):
    await fail(times=6)
    node.inbox()
    wire.hset("gt:nodes:slots", PLACE, 0)
    assert await reserve("j1", order=(A,), only=frozenset({A})) == Waiting(0)
    wire.hset("gt:nodes:slots", PLACE, 1)
    assert await board.fill([PLACE]) == 1
    assert [w.job for w in node.inbox()] == ["j1"]


async def test_a_closed_place_that_is_busy_is_waited_for(wire, node, other, board, reserve, fail):
    await fail(times=6)
    other.publish(slots=1)
    await reserve("j1", order=(B,))
    assert await reserve("j2", order=(A, B)) == Waiting(0)
    other.die()
    node.inbox()
    assert await board.fill([PLACE]) == 1
    assert [w.job for w in node.inbox()] == ["j2"]


async def test_without_redis_memory_all_are_closed(wire, node, other, board, reserve, fail):
    await fail(times=6)
    wire.delete("gt:breakers")
    assert await reserve("j1", order=(A, B)) == Placed(A)
    await board.release(A, "m", "j1", 1, Verdict.OK)


# -- the pure part -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("done", Verdict.OK),
        ("rejected", Verdict.NOTHING),
        (Outcome.ENGINE_ERROR, Verdict.FAULT),
        (Outcome.ENGINE_UNREACHABLE, Verdict.DOWN),
        (Outcome.ENGINE_DIED, Verdict.DOWN),
        (Outcome.FIRST_TOKEN_TIMEOUT, Verdict.DOWN),
        (Outcome.STALLED, Verdict.DOWN),
        ("node_lost", Verdict.DOWN),
        (Outcome.ENGINE_BUSY, Verdict.NOTHING),
        (Outcome.MODEL_NOT_READY, Verdict.NOTHING),
        (Outcome.DRAINING, Verdict.NOTHING),
        (Outcome.CANCELLED, Verdict.NOTHING),
        (WIRE_LOST, Verdict.NOTHING),
        ("", Verdict.NOTHING),
    ],
)
def test_what_an_outcome_says_of_its_place(outcome, expected):
    assert breaker.verdict(outcome) == expected


def test_what_a_report_says_of_its_place():
    item = work()
    good, bad = (Done(item.job, 1, item.lease, 0, s, b"", "", None, 0, 0) for s in (200, 400))
    died = Failed(item.job, 1, item.lease, 0, Outcome.ENGINE_DIED, "")
    assert [breaker.of_reply(r) for r in (good, bad, died, None)] == ["ok", "", "down", ""]


def test_the_log_tells_what_happened_between_two_looks():
    def at(state: State, opening: int = 1) -> dict[str, Breaker]:
        return {PLACE: Breaker(A, "m", state, 6, 0.0, opening)}

    where = f"node={A} model=m"
    opened, half = f"breaker open {where} faults=6 opening=1", f"breaker half open {where}"
    assert breaker.changes({}, {}) == []
    assert breaker.changes({}, at(State.OPEN)) == [opened]
    assert breaker.changes(at(State.OPEN), at(State.OPEN)) == []
    assert breaker.changes(at(State.OPEN), at(State.HALF_OPEN)) == [half]
    assert breaker.changes(at(State.HALF_OPEN), at(State.OPEN, 2)) == [opened.replace("=1", "=2")]
    assert breaker.changes(at(State.HALF_OPEN), {}) == [f"breaker closed {where}"]
