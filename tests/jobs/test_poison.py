"""Requests that bring down every engine they touch: how often they may, and who is refused for it."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from jobs import errors, poison
from jobs.errors import HeldOff
from jobs.models import Job, JobState
from jobs.poison import STRIKES, Strikes
from tests.jobs import deferred
from tests.jobs.scripted import ScriptedNode, done, until
from worker_agent.contract import Outcome

IDS = [letter * 16 for letter in "abcd"]
BAD, GOOD = b'{"model":"m","prompt":"bad"}', b'{"model":"m","prompt":"good"}'


@pytest.fixture
async def nodes(desk, wire) -> list[ScriptedNode]:
    nodes = [ScriptedNode(wire, id_, slots=4) for id_ in IDS]
    await desk.refresh()
    return nodes


async def who_has(nodes, job_id: str | None = None):
    """The node that a job's work has reached, and the work."""

    def look():
        for node in nodes:
            for item in node.inbox():
                assert job_id in {None, item.job}
                return node, item
        return None

    return await until(look)


async def die_with(desk, nodes, times: int = 3, body: bytes = BAD, **wanted):
    """A request whose engines die, and the nodes that it was on."""
    asking, seen = desk.ask(body=body, **wanted), []
    for _ in range(times):
        node, item = await who_has(nodes)
        seen.append(node.id)
        node.fail(item, Outcome.ENGINE_DIED)
    return asking, seen


async def test_it_ends_after_three_attempts_and_is_held_off_the_fourth_engine(desk, nodes):
    asking, seen = await die_with(desk, nodes)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    row = await desk.row(asking.job)
    assert (row.state, row.attempt_count, row.error_code) == (JobState.FAILED, 3, "upstream_failed")
    assert len(set(seen)) == 3
    await desk.settled()
    with pytest.raises(HeldOff, match="3 engines died") as caught:
        await desk.ask(body=BAD).first()
    assert 590 < (caught.value.retry_after or 0) <= 600
    assert [item for node in nodes for item in node.inbox()] == []
    assert await desk.held() == 0
    other = desk.ask(body=GOOD)
    node, item = await who_has(nodes)
    node.done(item)
    await other.first()


async def test_it_is_held_off_as_soon_as_its_caller_knows_that_it_failed(desk, nodes):
    asking, _ = await die_with(desk, nodes)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    with pytest.raises(HeldOff):
        await desk.ask(body=BAD).first()


async def test_strikes_that_come_while_a_look_is_under_way_are_not_forgotten(desk, nodes, monkeypatch):
    outlook, go_on = desk.dispatcher.outlook, asyncio.Event()

    async def slow(pipe, web):
        await go_on.wait()

    looked = asyncio.Event()
    look = desk.dispatcher.board.look

    async def noting():
        seen = await look()
        looked.set()
        return seen

    monkeypatch.setattr(outlook.affinity, "exchange", slow)
    monkeypatch.setattr(desk.dispatcher.board, "look", noting)
    looking = asyncio.create_task(desk.refresh())
    await looked.wait()
    asking, _ = await die_with(desk, nodes)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    go_on.set()
    await looking
    with pytest.raises(HeldOff):
        await desk.ask(body=BAD).first()


async def test_another_process_knows_with_its_next_look(desk, nodes, wire):
    asking, _ = await die_with(desk, nodes)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    await desk.settled()
    desk.dispatcher.outlook.strikes = {}
    await desk.refresh()
    with pytest.raises(HeldOff):
        await desk.ask(body=BAD).first()


async def test_another_keys_same_words_are_another_request(desk, nodes):
    asking, _ = await die_with(desk, nodes, key=1)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    other = desk.ask(body=BAD, key=2)
    node, item = await who_has(nodes)
    node.done(item)
    await other.first()


async def test_its_third_strike_ends_it_wherever_it_is(desk, nodes):
    first, _ = await die_with(desk, nodes, 2)
    await first.leave()
    await desk.look(later=10)  # nobody waits for its third attempt any more
    [node.inbox() for node in nodes]
    second, _ = await die_with(desk, nodes, 1)
    with pytest.raises(HeldOff):
        await second.first()
    assert (await desk.row(second.job)).attempt_count == 1
    assert [item for node in nodes for item in node.inbox()] == []


async def test_a_success_clears_the_strikes_of_a_bystander(desk, nodes, wire):
    asking, _ = await die_with(desk, nodes, 2)
    node, item = await who_has(nodes)
    await until(lambda: len(desk.dispatcher.outlook.strikes) == 1)
    node.done(item)
    await asking.first()
    await desk.settled()
    assert desk.dispatcher.outlook.strikes == {}
    assert wire.hgetall("gt:strikes") == {}


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_ERROR, Outcome.ENGINE_UNREACHABLE])
async def test_other_faults_are_no_strikes(desk, nodes, wire, outcome):
    asking = desk.ask(body=BAD)
    for _ in range(3):
        node, item = await who_has(nodes)
        node.fail(item, outcome)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    await desk.settled()
    assert wire.hgetall("gt:strikes") == {}


async def test_an_engine_that_dies_in_the_middle_of_a_stream_is_a_strike_too(desk, nodes, wire):
    asking = desk.ask(body=BAD)
    node, item = await who_has(nodes)
    node.chunk(item, 0, b"data: 1\n\n")
    await asking.first()
    node.fail(item, Outcome.ENGINE_DIED, 1)
    with pytest.raises(errors.UpstreamFailed):
        await asking.rest()
    await desk.settled()
    assert wire.hlen("gt:strikes") == 1


async def test_strikes_are_over_after_their_time(desk, nodes, wire, settings):
    asking, _ = await die_with(desk, nodes)
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    await desk.settled()
    ((name, packed),) = wire.hgetall("gt:strikes").items()
    assert 0 < wire.pttl("gt:strikes") <= 600_000
    wire.hset("gt:strikes", name, packed.split(b" ")[0] + b" 1000")
    await desk.refresh()
    assert desk.dispatcher.outlook.strikes == {}
    assert not wire.exists("gt:strikes")
    again = desk.ask(body=BAD)
    await who_has(nodes)
    await again.leave()


# -- asynchronous jobs ---------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_asynchronous_job_that_kills_engines_is_held_off_too(wire):
    nodes = {n.pk: n for n in (deferred.a_node(wire, name) for name in ("one", "two", "three", "four"))}

    def attempt(job: Job, end=deferred.failed) -> None:
        assert deferred.route(job).startswith("placed")
        pk, items = next((pk, items) for pk, n in nodes.items() if (items := deferred.inbox(wire, n)))
        deferred.report(nodes[pk], items[0])
        deferred.report(nodes[pk], items[0], end(items[0]))

    bad = deferred.submit(body=BAD)
    for _ in range(3):
        attempt(bad)
    bad.refresh_from_db()
    assert (bad.state, bad.error_code, bad.attempt_count) == (JobState.FAILED, "upstream_failed", 3)
    again = deferred.submit(body=BAD)
    assert deferred.route(again) == "refused: request_held_off"
    again.refresh_from_db()
    assert (again.state, again.error_code, again.attempt_count) == (JobState.FAILED, "request_held_off", 0)
    good = deferred.submit(body=GOOD)
    attempt(good)
    attempt(good, done)
    good.refresh_from_db()
    assert good.state == JobState.COMPLETED
    assert wire.hlen("gt:strikes") == 1  # the good one's was cleared


# -- the pure part -------------------------------------------------------------------------------------


def test_a_fingerprint_tells_requests_apart_and_says_nothing_of_them(settings):
    this = poison.fingerprint("1", "m", b"body")
    assert this == poison.fingerprint("1", "m", b"body")
    others = {("2", "m", b"body"), ("1", "n", b"body"), ("1", "m", b"bodz"), ("1", "mb", b"ody")}
    assert this not in {poison.fingerprint(*other) for other in others}
    settings.SECRET_KEY = "another secret"
    assert this != poison.fingerprint("1", "m", b"body")


def test_only_who_has_had_three_is_refused_and_only_for_a_time():
    known = Strikes(STRIKES, until=100.0)
    request = ("1", "m", b"body")
    strikes = {poison.fingerprint(*request): known}
    poison.check({}, *request, now=0.0)
    poison.check(strikes, "1", "m", b"other", now=0.0)
    poison.check(strikes, *request, now=100.0)
    poison.check({k: dataclasses.replace(known, count=2) for k in strikes}, *request, now=0.0)
    with pytest.raises(HeldOff, match="30 s more"):
        poison.check(strikes, *request, now=70.5)
