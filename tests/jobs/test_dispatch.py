"""Answers, failures and retries, with nodes that follow a script."""

from __future__ import annotations

import asyncio
import gc

import pytest

from jobs import afterwards, errors, interactive, mailbox
from jobs.models import Job, JobState
from tests.jobs.desk import Desk, request
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Cancel, Chunk, Done, Load, ModelState, Outcome

A, B, C, D = (letter * 16 for letter in "abcd")


async def attempts(desk, job) -> list[tuple[str | None, str]]:
    row = await desk.row(job)
    return [(a.node_id, a.outcome) for a in row.attempts.all()]


async def test_a_whole_answer_comes_back_and_is_recorded(desk, wire):
    node = ScriptedNode(wire)
    await desk.refresh()
    asking = desk.ask(stream=False, body=b'{"model":"m"}')
    work = await node.take()
    assert (work.path, work.body, work.stream) == ("/v1/chat/completions", b'{"model":"m"}', False)
    assert await desk.held() == 1
    node.done(work, body=b'{"choices":[]}')
    first = await asking.first()
    assert isinstance(first, Done)
    assert first.body == b'{"choices":[]}'
    assert await desk.held() == 0
    assert desk.dispatcher.jobs == {}
    row = await desk.row(asking.job)
    assert (row.state, row.node_id, row.attempt_count) == (JobState.COMPLETED, node.id, 1)
    assert (row.prompt_tokens, row.completion_tokens, row.http_status) == (3, 7, 200)
    assert row.created_at <= row.placed_at <= row.finished_at
    assert "score" in row.why
    assert await attempts(desk, asking.job) == [(node.id, "done")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_is_over_needs_no_collector_to_be_freed(desk, wire, stream):
    """A busy process would hold many thousands, and stop for 0.1 s and more to look through them."""
    node = ScriptedNode(wire)
    await desk.refresh()
    gc.collect()
    gc.disable()
    try:
        asking = desk.ask(stream=stream)
        work = await node.take()
        if stream:
            node.chunk(work, 0, b"data: {}\n\n")
        node.done(work, int(stream))
        await asking.first()
        if stream:
            await asking.rest()
        await desk.row(asking.job)
        name = asking.job.id
        del asking
        await desk.held()
        jobs = [each for each in gc.get_objects() if type(each) is interactive.InteractiveJob]
        assert name not in [each.id for each in jobs]
    finally:
        gc.enable()


@pytest.fixture
def at_rest(monkeypatch) -> None:
    """What is left to do for a job rests until another is placed; nothing is done by itself."""
    monkeypatch.setattr(afterwards, "REST_SECONDS", 60.0)
    monkeypatch.setattr(mailbox, "_REFRESH_SECONDS", 60.0)


class FakeLeave:
    """Of a key with limits."""

    def __init__(self, *, pressing: bool) -> None:
        self.pressing = pressing
        self.told: list[interactive.InteractiveJob] = []

    def over(self, job, heard) -> None:
        self.told.append(job)
        heard(1)


@pytest.mark.parametrize(("slots", "used"), [(1, 1), (3, 1), (2, 2), (7, 2)])
async def test_a_slot_that_others_may_wait_for_comes_back_at_once(at_rest, desk, wire, slots, used):
    node = ScriptedNode(wire, slots=slots)
    await desk.refresh()
    kept = []
    for _ in range(used - 1):
        kept.append(desk.ask(stream=False))
        await node.take()
    asking = desk.ask(stream=False)
    node.done(await node.take())
    await asking.first()
    await until(lambda: wire.hlen(f"gt:board:slots:{node.id}/m") == used - 1)
    for other in kept:
        await other.leave()


@pytest.mark.parametrize("slots", [4, 8])
async def test_a_slot_of_many_comes_back_behind_the_next_request(at_rest, desk, wire, slots):
    node = ScriptedNode(wire, slots=slots)
    await desk.refresh()
    asking = desk.ask(stream=False)
    node.done(await node.take())
    await asking.first()
    await asyncio.sleep(0.02)
    assert wire.hlen(f"gt:board:slots:{node.id}/m") == 1
    following = desk.ask(stream=False)
    work = await node.take()
    await until(lambda: wire.hkeys(f"gt:board:slots:{node.id}/m") == [f"{work.job}:1".encode()])
    node.done(work)
    await following.first()


async def test_what_is_left_to_do_is_done_without_a_next_request(desk, wire):
    node = ScriptedNode(wire, slots=4)
    await desk.refresh()
    asking = desk.ask(stream=False)
    node.done(await node.take())
    await asking.first()
    await until(lambda: not desk.dispatcher.jobs and not wire.exists(f"gt:board:slots:{node.id}/m"))


@pytest.mark.parametrize("pressing", [True, False])
async def test_limits_that_are_half_used_get_back_at_once_what_was_not_used(at_rest, desk, wire, pressing):
    node, leave = ScriptedNode(wire, slots=4), FakeLeave(pressing=pressing)
    await desk.refresh()
    submitted = asyncio.create_task(desk.dispatcher.submit(request(stream=False), leave))
    node.done(await node.take())
    job = await submitted
    await desk.dispatcher.first(job)
    assert leave.told == []
    await asyncio.sleep(0.02)
    assert leave.told == [job] * pressing


async def test_what_is_left_to_do_is_done_before_the_process_ends(at_rest, desk, wire):
    node, leave, other = ScriptedNode(wire, slots=4), FakeLeave(pressing=False), Desk()
    await other.dispatcher.start()
    await other.refresh()
    submitted = asyncio.create_task(other.dispatcher.submit(request(stream=False), leave))
    node.done(await node.take())
    job = await submitted
    await other.dispatcher.first(job)
    await other.dispatcher.stop()
    assert leave.told == [job]
    assert not wire.exists(f"gt:board:slots:{node.id}/m")
    assert (await desk.row(job)).state == JobState.COMPLETED


async def test_a_stream_comes_back_byte_for_byte(desk, wire):
    node = ScriptedNode(wire)
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    first = await asking.first()
    assert isinstance(first, Chunk)
    node.reply(*[Chunk(work.job, 1, work.lease, n, b"data: %d\n\n" % n) for n in (1, 2)], to=work)
    node.done(work, 3, b"data: [DONE]\n\n")
    data = first.data + b"".join(await asking.rest())
    assert data == b"data: 1\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert await desk.held() == 0
    row = await desk.row(asking.job)
    assert row.state == JobState.COMPLETED
    assert row.first_token_at


async def test_the_engines_refusal_is_the_callers_mistake_and_not_tried_again(desk, wire):
    node, other = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask(stream=False)
    node.done(await node.take(), body=b'{"error":{}}', status=400)
    assert (await asking.first()).status == 400
    assert other.inbox() == []
    row = await desk.row(asking.job)
    assert (row.state, row.error_code, row.http_status) == (JobState.FAILED, "rejected_by_engine", 400)
    assert await desk.held() == 0


async def test_work_that_came_as_its_model_was_unloaded_goes_back_when_there_is_no_other_node(desk, wire):
    only = ScriptedNode(wire, A)
    await desk.refresh()
    asking = desk.ask()
    only.fail(await only.take(), Outcome.MODEL_NOT_READY)
    again = await only.take()
    assert again.attempt == 2
    only.done(again, body=b"data: [DONE]\n\n")
    await asking.first()
    assert await attempts(desk, asking.job) == [(A, "model_not_ready"), (A, "done")]


@pytest.mark.parametrize("outcome", sorted(interactive.RETRYABLE - {"node_lost", "wire_lost"}))
async def test_before_the_first_byte_another_node_takes_over(desk, wire, outcome):
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    work = await one.take()
    one.fail(work, outcome)
    again = await two.take()
    assert (again.job, again.attempt, again.body) == (work.job, 2, work.body)
    assert again.lease != work.lease
    two.done(again, body=b"data: [DONE]\n\n")
    await asking.first()
    assert await attempts(desk, asking.job) == [(A, outcome), (B, "done")]
    row = await desk.row(asking.job)
    assert (row.state, row.attempt_count, row.node_id) == (JobState.COMPLETED, 2, B)
    assert await desk.held() == 0


async def test_the_first_node_can_say_nothing_more_after_another_took_over(desk, wire):
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    work = await one.take()
    one.fail(work, Outcome.ENGINE_DIED)
    again = await two.take()
    one.done(work, 1, b"late")
    two.done(again, body=b"good")
    assert (await asking.first()).body == b"good"
    assert desk.dispatcher.mailbox.stale == 1


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_DIED, Outcome.STALLED])
async def test_after_the_first_byte_nothing_is_repeated(desk, wire, outcome):
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    work = await one.take()
    one.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    one.fail(work, outcome, 1, "it broke")
    with pytest.raises(errors.UpstreamFailed, match="it broke"):
        await asking.rest()
    assert two.inbox() == []
    assert await desk.held() == 0
    row = await desk.row(asking.job)
    assert (row.state, row.error_code, row.attempt_count) == (JobState.FAILED, "upstream_failed", 1)


async def test_three_attempts_are_all_there_are(desk, wire):
    nodes = {id_: ScriptedNode(wire, id_) for id_ in (A, B, C, D)}
    await desk.refresh()
    asking = desk.ask()
    for id_, outcome in zip((A, B, C), ("engine_died", "engine_error", "engine_busy"), strict=True):
        nodes[id_].fail(await nodes[id_].take(), Outcome(outcome))
    with pytest.raises(errors.UpstreamFailed):
        await asking.first()
    assert nodes[D].inbox() == []
    row = await desk.row(asking.job)
    assert (row.state, row.attempt_count) == (JobState.FAILED, 3)
    assert await desk.held() == 0


async def test_when_every_node_has_failed_the_last_reason_is_told(desk, wire):
    node = ScriptedNode(wire)
    await desk.refresh()
    asking = desk.ask()
    node.fail(await node.take(), Outcome.ENGINE_ERROR, message="out of paper")
    with pytest.raises(errors.UpstreamFailed, match="out of paper"):
        await asking.first()


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.FIRST_TOKEN_TIMEOUT, errors.FirstTokenTimeout),
        (Outcome.STALLED, errors.UpstreamFailed),
        (Outcome.TOTAL_TIMEOUT, errors.UpstreamFailed),
        (Outcome.UNDELIVERABLE, errors.UpstreamFailed),
    ],
)
async def test_a_time_out_is_not_tried_again(desk, wire, outcome, error):
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    asking = desk.ask()
    one.fail(await one.take(), outcome)
    with pytest.raises(error):
        await asking.first()
    assert two.inbox() == []
    assert await desk.held() == 0


async def test_a_gap_in_the_answer_ends_it_and_stops_the_node(desk, wire):
    node = ScriptedNode(wire)
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    await asking.first()
    node.chunk(work, 2, b"data: 3\n\n")
    with pytest.raises(errors.UpstreamFailed, match="lost on its way"):
        await asking.rest()
    assert await desk.held() == 0
    assert node.controls() == [Cancel(work.job, 1)]
    assert await attempts(desk, asking.job) == [(node.id, "sequence_gap")]


# -- nowhere to go -------------------------------------------------------------------------------------


async def test_a_model_that_nobody_offers_is_not_found(desk, wire):
    ScriptedNode(wire)
    await desk.refresh()
    with pytest.raises(errors.NoSuchModel, match="`other` does not exist"):
        await desk.ask(model="other").first()
    assert desk.dispatcher.jobs == {}


async def test_without_a_live_node_it_is_said_at_once(desk, wire):
    ScriptedNode(wire).die()
    await desk.refresh()
    with pytest.raises(errors.NoWorkers):
        await desk.ask().first()


async def test_a_full_queue_is_refused_and_recorded(desk, wire, settings):
    settings.QUEUE_PER_MODEL = 0
    node = ScriptedNode(wire)
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    with pytest.raises(errors.QueueFull) as caught:
        await desk.ask().first()
    assert caught.value.retry_after
    assert list(desk.dispatcher.jobs) == [work.job]
    node.done(work)
    await asking.first()
    await desk.dispatcher.recorder.flush()
    rows = {row.error_code: row.state async for row in Job.objects.all()}
    assert rows == {"": JobState.COMPLETED, "queue_full": JobState.FAILED}


async def test_who_waits_is_served_when_a_slot_comes_free(desk, wire):
    node = ScriptedNode(wire)
    await desk.refresh()
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: wire.zcard("gt:board:waiting") == 1)
    node.done(work)
    await first.first()
    following = await node.take()
    assert following.job == second.job.id
    node.done(following)
    await second.first()
    row = await desk.row(second.job)
    assert (row.node_id, row.why) == (node.id, "waited for a free slot")
    assert await desk.held() == 0


async def test_a_model_that_can_be_loaded_is_asked_for_once_and_waited_for(desk, wire):
    node = ScriptedNode(wire, slots=2, state=ModelState.OFFERED)
    await desk.refresh()
    askings = [desk.ask(), desk.ask()]
    await until(lambda: wire.zcard("gt:board:waiting") == 2)
    await desk.settled()
    assert node.controls() == [Load("m")]
    node.publish(state=ModelState.READY)
    await desk.refresh()
    for work in await until(node.inbox):
        node.done(work)
    await asyncio.gather(*(asking.first() for asking in askings))


async def test_redis_away_is_a_broker_unavailable_and_an_end(desk, wire):
    ScriptedNode(wire)
    await desk.refresh()
    wire.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha")
    try:
        asking = desk.ask()
        with pytest.raises(errors.BrokerUnavailable):
            await asking.first()
        assert desk.dispatcher.jobs == {}
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")


# -- what the end of an attempt says of its node -------------------------------------------------------


async def test_faults_open_a_breaker_and_everybody_sees_it(desk, wire, caplog):
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    two.node.state = "draining"
    two.publish()
    await desk.refresh()
    for _ in range(6):
        asking = desk.ask()
        one.fail(await one.take(), Outcome.ENGINE_ERROR)
        with pytest.raises(errors.UpstreamFailed):
            await asking.first()
        await desk.settled()
    two.node.state = "online"
    two.publish()
    with caplog.at_level("WARNING"):
        await desk.refresh()
    assert f"breaker open node={A} model=m faults=6 opening=1" in caplog.messages
    assert [c.breaker for c in desk.dispatcher.outlook.candidates("m")] == ["open", ""]
    asking = desk.ask()
    work = await two.take()
    waiting = desk.ask()
    await until(lambda: wire.zcard("gt:board:waiting"))
    opening, _, *rest = wire.hget("gt:breakers", one.place).decode().split(" ")
    just_now = (int(wire.time()[0]) - 1) * 1000
    wire.hset("gt:breakers", one.place, " ".join([opening, str(just_now), *rest]))
    await desk.refresh()  # and with it the probe is sent
    probe = await one.take()
    assert probe.job == waiting.job.id
    one.done(probe)
    two.done(work)
    await asyncio.gather(asking.first(), waiting.first())
    await desk.settled()
    with caplog.at_level("WARNING"):
        await desk.refresh()
    assert desk.dispatcher.outlook.breakers == {}
    assert f"breaker closed node={A} model=m" in caplog.messages


@pytest.mark.parametrize("outcome", [Outcome.ENGINE_BUSY, Outcome.MODEL_NOT_READY, Outcome.DRAINING])
async def test_back_pressure_opens_none(desk, wire, settings, outcome):
    settings.BREAKER_FAULTS = 1
    one, two = ScriptedNode(wire, A), ScriptedNode(wire, B)
    await desk.refresh()
    for _ in range(3):
        asking = desk.ask()
        one.fail(await one.take(), outcome)
        two.done(await two.take())
        await asking.first()
        await desk.settled()
    assert await desk.dispatcher.board.breakers() == []


async def test_a_callers_mistake_opens_none(desk, wire, settings):
    settings.BREAKER_FAULTS = 1
    node = ScriptedNode(wire, A)
    await desk.refresh()
    for _ in range(3):
        asking = desk.ask()
        node.done(await node.take(), status=400, body=b'{"error":{}}')
        await asking.first()
        await desk.settled()
    assert await desk.dispatcher.board.breakers() == []


async def test_the_time_to_come_again_follows_the_drain_rate(desk, wire, settings):
    settings.QUEUE_PER_MODEL = 3
    wire.hset("gt:drain:m", mapping={"interval": "2500", "n": 9})
    ScriptedNode(wire)
    await desk.refresh()
    askings = [desk.ask() for _ in range(4)]
    await until(lambda: wire.zcard("gt:board:waiting") == 3)
    with pytest.raises(errors.QueueFull, match="3 requests wait for m already") as caught:
        await desk.ask().first()
    assert caught.value.retry_after == 8
    for asking in askings:
        await asking.leave()


async def test_who_may_not_wait_at_all_is_told_that_every_slot_is_taken(desk, wire, settings):
    settings.QUEUE_SECONDS = 0
    ScriptedNode(wire)
    await desk.refresh()
    first = desk.ask()
    await until(lambda: first.job)
    with pytest.raises(errors.QueueFull, match="every slot for m is taken"):
        await desk.ask().first()
    await first.leave()


async def test_a_job_that_waited_is_running_in_the_ledger_as_soon_as_it_is_placed(desk, node):
    await desk.refresh()
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: second.job)
    waited = second.job if second.job and not second.job.node else first.job
    assert waited
    assert (await desk.row(waited)).state == JobState.PENDING
    node.done(work)
    later = await node.take()
    await until(lambda: waited.node)
    row = await desk.row(waited)
    assert (row.state, row.node_id) == (JobState.RUNNING, node.id)
    node.done(later)
    await asyncio.gather(first.first(), second.first())
