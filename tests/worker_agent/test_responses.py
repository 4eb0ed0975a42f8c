from __future__ import annotations

import json

import msgspec
import pytest

from tests.fake_responses import Telling
from tests.worker_agent.conftest import free_port
from tests.worker_agent.engines import fake_engine
from tests.worker_agent.stand_in import work
from tests.worker_agent.test_completion import run
from worker_agent import responses
from worker_agent.contract import RESPONSES, Chunk, Done, Failed, Outcome, Usage
from worker_agent.engine_client import EngineClient
from worker_agent.translating import Renaming

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def told(**fields):
    """The three parts of a stream."""
    telling = Telling({"model": "m", "input": "x", **fields}, "1")
    opening, delta = telling.opening(), telling.delta("red", None, [])
    return opening, delta, telling.closing(None, "stop", USAGE)


OPENING, DELTA, CLOSING = told()


def event(**fields):
    return b"event: x\ndata: " + json.dumps(fields).encode() + b"\n\n"


def asked(text="red green blue", *, stream=True, **fields):
    body = json.dumps({"model": "m", "input": text, "stream": stream, "max_output_tokens": 6, **fields})
    return msgspec.structs.replace(work(stream=stream), path=RESPONSES, body=body.encode())


def parsed(data):
    return [json.loads(part.partition(b"data: ")[2]) for part in data.split(b"\n\n")[:-1]]


def test_the_stream_ends_with_its_last_event_and_what_follows_is_left_out():
    assert responses.closed(OPENING + DELTA) == (OPENING + DELTA, False)
    assert responses.closed(DELTA + CLOSING + b"data: [DONE]\n\n") == (DELTA + CLOSING, True)
    incomplete = event(type="response.incomplete", response={"usage": None})
    assert responses.closed(DELTA + incomplete) == (DELTA + incomplete, True)


def test_what_only_echoes_the_name_of_the_last_event_is_not_it():
    opening, delta, _ = told(metadata={"type": "response.completed"}, instructions='"response.completed"')
    assert b'"response.completed"' in opening
    assert responses.closed(opening + delta) == (opening + delta, False)
    assert responses.take_usage(opening + delta, hide=True) == (opening + delta, None)


def test_the_last_event_tells_the_usage_and_nothing_is_hidden():
    assert responses.take_usage(DELTA + CLOSING, hide=True) == (DELTA + CLOSING, Usage(3, 2))
    cached = {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 8}}
    whole = event(type="response.completed", response={"usage": cached})
    assert responses.take_usage(whole, hide=False)[1] == Usage(9, 1, 8)
    assert responses.body_usage(json.dumps({"usage": cached}).encode()) == Usage(9, 1, 8)
    assert responses.body_usage(b'{"usage":null}') is None
    assert responses.body_usage(b"not json") is None


@pytest.mark.parametrize(
    "kind", ["output_text", "reasoning_text", "function_call_arguments", "custom_tool_call_input", "refusal"]
)
def test_any_delta_is_a_token(kind):
    assert responses.has_token(OPENING + event(type=f"response.{kind}.delta", delta="x"))


def test_what_opens_an_answer_is_no_token():
    assert not responses.has_token(OPENING + b": ping\n\n")
    assert responses.has_token(CLOSING)
    assert responses.has_token(b"data: [1\n\n")


@pytest.mark.parametrize(
    "error",
    [
        event(type="error", message="no", code="x"),
        event(type="error", error={"message": "no"}),
        event(type="response.failed", response={"error": {"code": "x", "message": "no"}}),
        b'data: {"error":{"message":"no","code":500}}\n\n',
        b'data: {"error":"no"}\n\n',
    ],
)
def test_an_error_is_found_in_each_of_its_forms(error):
    assert responses.error_in(DELTA + error) == "no"


def test_an_answer_without_an_error_or_about_one_is_none():
    assert responses.error_in(OPENING + DELTA + CLOSING) is None
    assert responses.error_in(event(type="response.completed", response={"error": None})) is None
    assert responses.error_in(event(type="response.output_text.delta", delta='{"type":"error"}')) is None


async def test_a_stream_passes_as_it_is_with_the_jobs_id_and_opens_with_its_first_token():
    with fake_engine(free_port(), "--per-second", "100") as port:
        item = asked()
        replies = await run(EngineClient(port), item)
    events = parsed(replies.body)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert text == "red green blue red green blue"
    assert {e["response"]["id"] for e in events if "response" in e} == {f"resp_{item.job}"}
    first, *_, last = replies
    assert isinstance(first, Chunk)
    assert len(replies) > 3, "it came in one piece"
    assert [e["type"] for e in parsed(first.data)][:2] == ["response.created", "response.in_progress"]
    assert responses.has_token(first.data)
    assert isinstance(last, Done)
    assert (last.status, last.usage) == (200, Usage(3, 6))
    assert 0 < last.first_token_ms <= last.total_ms


async def test_a_whole_answer_has_the_jobs_id_and_its_usage():
    with fake_engine(free_port()) as port:
        item = asked(stream=False)
        replies = await run(EngineClient(port), item)
    (last,) = replies
    assert json.loads(last.body)["id"] == f"resp_{item.job}"
    assert last.usage == Usage(3, 6)


@pytest.mark.parametrize("knob", ["--cut-stream", "--stream-error"])
async def test_a_stream_that_breaks_off_is_a_dead_engine(knob):
    with fake_engine(free_port(), knob) as port:
        replies = await run(EngineClient(port), asked())
    assert isinstance(replies[-1], Failed)
    assert replies[-1].outcome == Outcome.ENGINE_DIED


async def test_an_engine_that_dies_before_its_first_token_has_said_nothing():
    with fake_engine(free_port(), "--die-on-word", "green") as port:
        replies = await run(EngineClient(port), asked())
    assert [type(it) for it in replies] == [Failed]


def test_a_foreign_server_is_renamed_in_the_answer_inside_its_events():
    naming = Renaming("ours", "theirs", "ab" * 16, RESPONSES)
    _, delta, _ = told(model="theirs")
    events = naming.events(b"".join(told(model="theirs")))
    for e in parsed(events):
        if "response" in e:
            assert (e["response"]["id"], e["response"]["model"]) == ("resp_" + "ab" * 16, "ours")
    assert naming.events(delta) == delta
    sent = naming.request(b'{"model":"ours","input":"x"}')
    assert json.loads(sent) == {"model": "theirs", "input": "x"}
    whole = naming.answer(b'{"id":"resp_1","object":"response","model":"theirs"}')
    assert json.loads(whole) == {"id": "resp_" + "ab" * 16, "object": "response", "model": "ours"}
