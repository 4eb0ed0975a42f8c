from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from tests.worker_agent.conftest import free_port
from tests.worker_agent.engines import fake_engine, get
from tests.worker_agent.stand_in import text_of, work
from worker_agent.completion import Completion
from worker_agent.contract import Chunk, Done, Failed, Outcome, Usage
from worker_agent.engine_client import EngineClient
from worker_agent.meter import Meter


class Replies(list):
    """What a completion emitted; `full` makes it refuse chunks as a mailbox that owes too much does."""

    full = False

    def emit(self, reply):
        if self.full and isinstance(reply, Chunk):
            return False
        self.append(reply)
        return True

    @property
    def body(self):
        return b"".join(it.data if isinstance(it, Chunk) else it.body for it in self)


@contextlib.contextmanager
def engine(*knobs):
    with fake_engine(free_port(), *knobs) as port:
        yield EngineClient(port)


async def run(client, item, replies=None, meter=None):
    replies = Replies() if replies is None else replies
    completion = Completion(item, client, replies.emit, meter or Meter(time.monotonic))
    last = await asyncio.wait_for(completion.run(), 20)
    assert replies[-1] is last
    assert [it.seq for it in replies] == list(range(len(replies)))
    assert {(it.job, it.attempt, it.lease) for it in replies} == {(item.job, item.attempt, item.lease)}
    client.close()
    return replies


async def test_a_stream_arrives_byte_for_byte_in_whole_events():
    with engine("--per-second", "200") as client:
        item = work(prompt="red green blue", tokens=8)
        replies = await run(client, item)
    last = replies[-1]
    assert isinstance(last, Done)
    assert text_of(replies.body) == "red green blue red green blue red green"
    assert len(replies) > 3, "it came in one piece"
    for reply in replies:
        data = reply.data if isinstance(reply, Chunk) else reply.body
        assert data.endswith(b"\n\n")
        assert all(event.startswith(b"data: ") for event in data.split(b"\n\n")[:-1])
    assert last.body.endswith(b"data: [DONE]\n\n")
    assert replies.body.count(b"[DONE]") == 1
    assert last.usage == Usage(3, 8)
    assert last.status == 200
    assert 0 < last.first_token_ms <= last.total_ms
    assert f"chatcmpl-{item.job}".encode() in last.body


@pytest.mark.parametrize("hide", [True, False])
async def test_the_usage_event_reaches_only_a_caller_who_asked(hide):
    with engine() as client:
        replies = await run(client, work(hide_usage=hide))
    assert replies[-1].usage == Usage(3, 6)
    assert (b'"usage"' in replies.body) is not hide
    assert replies[-1].body.endswith(b"data: [DONE]\n\n")


async def test_a_whole_answer_comes_as_it_is():
    with engine() as client:
        replies = await run(client, work(stream=False))
    (last,) = replies
    assert last.content_type.startswith("application/json")
    assert json.loads(last.body)["choices"][0]["message"]["content"] == "red green blue red green blue"
    assert last.usage == Usage(3, 6)


async def test_other_endpoints_pass_too():
    with engine() as client:
        item = work(stream=False, path="/v1/embeddings", body={"input": "a b"})
        replies = await run(client, item)
    assert json.loads(replies[-1].body)["object"] == "list"
    assert replies[-1].usage == Usage(2, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_callers_mistake_is_an_answer_not_a_failure(stream):
    with engine() as client:
        replies = await run(client, work(stream=stream, tokens=5000))
    (last,) = replies
    assert isinstance(last, Done)
    assert last.status == 400
    assert "max_tokens" in json.loads(last.body)["error"]["message"]
    assert last.usage is None


async def test_what_a_model_is_not_made_for_is_the_callers_mistake():
    with engine("--error-status", "501") as client:
        (last,) = await run(client, work())
    assert isinstance(last, Done)
    assert (last.status, json.loads(last.body)["error"]["message"]) == (404, "as asked")


@pytest.mark.parametrize(
    ("knobs", "outcome", "status"),
    [
        (["--busy"], Outcome.ENGINE_BUSY, 503),
        (["--error-status", "429"], Outcome.ENGINE_BUSY, 429),
        (["--error-status", "500"], Outcome.ENGINE_ERROR, 500),
    ],
)
async def test_the_engines_own_refusals_are_failures_of_two_kinds(knobs, outcome, status):
    with engine(*knobs) as client:
        (last,) = await run(client, work())
    assert isinstance(last, Failed)
    assert (last.outcome, last.status) == (outcome, status)
    assert "red green" not in last.message


async def test_an_error_inside_a_stream_is_a_failure():
    with engine("--stream-error") as client:
        replies = await run(client, work())
    assert replies[-1].outcome is Outcome.ENGINE_ERROR
    assert replies[-1].message == "the engine stumbled"


async def test_a_stream_that_just_stops_is_a_dead_engine():
    with engine("--cut-stream") as client:
        replies = await run(client, work())
    assert replies[-1].outcome is Outcome.ENGINE_DIED
    assert isinstance(replies[0], Chunk), "what came before the end was passed on"


async def test_an_engine_that_dies_in_the_middle():
    with engine("--die-after-tokens", "4", "--per-second", "100") as client:
        replies = await run(client, work(tokens=50))
    assert replies[-1].outcome is Outcome.ENGINE_DIED


async def test_an_engine_that_is_not_there():
    (last,) = await run(EngineClient(free_port()), work())
    assert last.outcome is Outcome.ENGINE_UNREACHABLE


async def test_a_first_token_that_does_not_come():
    with engine("--first-seconds", "30") as client:
        (last,) = await run(client, work(first_token_seconds=0.3))
        assert last.outcome is Outcome.FIRST_TOKEN_TIMEOUT
        await _until(lambda: get(client.port, "/fake/stats")["running"] == 0)


async def test_a_stream_that_stalls_ends_and_the_engine_is_told():
    with engine("--hang-after-tokens", "4", "--per-second", "200") as client:
        replies = await run(client, work(tokens=50, stall_seconds=0.3, first_token_seconds=30))
        assert replies[-1].outcome is Outcome.STALLED
        assert isinstance(replies[0], Chunk)
        await _until(lambda: get(client.port, "/fake/stats")["aborted"] == 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_takes_too_long_altogether(stream):
    with engine("--per-second", "20") as client:
        replies = await run(client, work(stream=stream, tokens=500, total_seconds=0.4))
        assert replies[-1].outcome is Outcome.TOTAL_TIMEOUT
        await _until(lambda: get(client.port, "/fake/stats")["aborted"] == 1)


async def test_for_a_whole_answer_only_the_total_counts():
    with engine("--per-second", "20") as client:
        (last,) = await run(client, work(stream=False, first_token_seconds=0.05, stall_seconds=0.05))
    assert isinstance(last, Done)


async def test_a_cancelled_request_is_aborted_in_the_engine():
    with engine("--per-second", "20") as client:
        replies = Replies()
        completion = Completion(work(tokens=500), client, replies.emit, Meter(time.monotonic))
        task = asyncio.create_task(completion.run())
        await _until(lambda: replies)
        completion.abort(Outcome.CANCELLED, "cancelled")
        completion.abort(Outcome.DRAINING, "a second word changes nothing")
        last = await task
        assert isinstance(last, Failed)
        assert last.outcome is Outcome.CANCELLED
        assert sum(isinstance(it, Failed | Done) for it in replies) == 1
        await _until(lambda: get(client.port, "/fake/stats")["aborted"] == 1)
        assert get(client.port, "/fake/stats")["running"] == 0


async def test_an_attempt_aborted_before_it_began_asks_nothing():
    with engine() as client:
        replies = Replies()
        completion = Completion(work(), client, replies.emit, Meter(time.monotonic))
        completion.abort(Outcome.CANCELLED, "cancelled")
        last = await completion.run()
        assert isinstance(last, Failed)
        assert last.outcome is Outcome.CANCELLED
        assert get(client.port, "/fake/stats")["total"] == 1


async def test_an_attempt_whose_replies_find_no_room_ends():
    with engine("--per-second", "50") as client:
        replies = Replies()
        replies.full = True
        replies = await run(client, work(tokens=100), replies)
    assert replies[-1].outcome is Outcome.UNDELIVERABLE


async def test_being_torn_down_is_not_taken_for_a_verdict():
    with engine("--per-second", "20") as client:
        replies = Replies()
        completion = Completion(work(tokens=500), client, replies.emit, Meter(time.monotonic))
        task = asyncio.create_task(completion.run())
        await _until(lambda: replies)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(isinstance(it, Failed | Done) for it in replies)


async def test_many_at_once_each_get_their_own_words():
    with engine("--per-second", "100") as client:
        items = [work(prompt=f"w{i} x{i}", tokens=10) for i in range(40)]
        boxes = [Replies() for _ in items]
        meter = Meter(time.monotonic)
        runs = [Completion(i, client, b.emit, meter).run() for i, b in zip(items, boxes, strict=True)]
        assert all(isinstance(last, Done) for last in await asyncio.gather(*runs))
        for i, box in enumerate(boxes):
            assert text_of(box.body) == " ".join([f"w{i} x{i}"] * 5)
        rate, first = meter.read()
        assert rate > 0
        assert first > 0
        client.close()


async def test_tokens_are_counted_as_the_engine_counts_them():
    clock = [0.0]
    meter = Meter(lambda: clock[0])
    with engine() as client:
        await run(client, work(tokens=7), meter=meter)
    clock[0] = 7.0
    assert meter.read()[0] == pytest.approx(1.0)


async def test_connections_are_kept_and_a_stale_one_is_no_failure():
    port = free_port()
    client = EngineClient(port)
    with fake_engine(port):
        for _ in range(3):
            assert (await client.get("/health"))[0] == 200
        assert len(client._open) == 1
    with fake_engine(port):
        assert (await client.get("/health"))[0] == 200
    client.close()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_dies_with_the_request_is_not_called_unreachable(kept, stream):
    with engine("--die-on-word", "arsenic") as client:
        if kept:
            assert (await client.get("/health"))[0] == 200
        replies = await run(client, work(prompt="arsenic", tokens=4, stream=stream))
        assert replies[-1].outcome == Outcome.ENGINE_DIED


async def _until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it asks another process
            await asyncio.sleep(0.02)
