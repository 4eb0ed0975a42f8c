"""``POST /v1/responses`` by both doors: what goes to the engine, what comes back, what is counted."""

from __future__ import annotations

import asyncio
import json

import pytest

from api.schemas import parse
from jobs import prompt
from jobs.models import JobState
from tests.api.test_embeddings import caller, recorded
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import RESPONSES as PATH
from worker_agent.contract import Done, Outcome, Usage

BODY = {"model": "m", "input": "one two", "max_output_tokens": 8}
CREATED = b'event: response.created\ndata: {"response":{"id":"resp_1"},"type":"response.created"}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"delta":"x","type":"response.output_text.delta"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"response":{},"type":"response.completed"}\n\n'
USER = {"role": "user", "content": "x" * 400}
INPUT = {"type": "input_text", "text": "hello"}


def wanted(**fields):
    return parse(PATH, json.dumps({**BODY, **fields}).encode(), key=1)


def answered(node, work, body, seq=0):
    key = (work.job, work.attempt, work.lease, seq)
    node.reply(Done(*key, 200, body, "application/json", Usage(7, 3), 1.0, 5.0), to=work)


async def test_a_whole_answer_passes_and_is_recorded(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json=BODY, headers=ann))
    work = await node.take()
    assert (work.path, work.stream, json.loads(work.body)) == (PATH, False, {**BODY, "store": False})
    body = b'{"object":"response",  "usage":{}}'
    answered(node, work, body)
    answer = await asking
    assert (answer.status_code, answer.content) == (200, body)
    row = await recorded(work.job, JobState.COMPLETED)
    assert (row.path, row.prompt_tokens, row.completion_tokens) == (PATH, 7, 3)
    found = await client.get(f"/jobs/resp_{work.job}", headers=ann)
    assert found.json()["id"] == work.job


async def test_a_stream_passes_byte_for_byte(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json={**BODY, "stream": True}, headers=ann))
    work = await node.take()
    node.chunk(work, 0, CREATED + DELTA)
    answered(node, work, DELTA + COMPLETED, 1)
    answer = await asking
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == CREATED + DELTA + DELTA + COMPLETED


async def test_a_stream_that_cannot_go_on_ends_with_one_typed_error(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json={**BODY, "stream": True}, headers=ann))
    work = await node.take()
    node.chunk(work, 0, CREATED + DELTA)
    node.chunk(work, 1, DELTA)
    node.fail(work, Outcome.ENGINE_DIED, 2, "the engine has died")
    passed, last = (await asking).content[: len(CREATED + DELTA + DELTA)], (await asking).content
    assert passed == CREATED + DELTA + DELTA
    name, data = last[len(passed) :].removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error"
    told = json.loads(data.removeprefix(b"data: "))
    assert told["type"] == "error"
    assert told["sequence_number"] == 3
    assert told["code"] == told["error"]["code"] == "upstream_failed"
    assert "the engine has died" in told["message"]
    assert told["message"] == told["error"]["message"]


async def test_a_refusal_by_the_engine_has_our_shape(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json={**BODY, "stream": True}, headers=ann))
    work = await node.take()
    said = {"message": "Encrypted content is not supported.", "param": "input", "code": 400}
    refusal = json.dumps({"error": {**said, "type": "BadRequestError"}}).encode()
    key = (work.job, work.attempt, work.lease, 0)
    node.reply(Done(*key, 400, refusal, "application/json", None, 0.0, 1.0), to=work)
    answer = await asking
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "rejected_by_engine"
    assert answer.json()["error"]["param"] == "input"


async def test_limits_reserve_the_most_that_may_be_answered(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller(tokens_per_minute=1000)
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json={**BODY, "max_output_tokens": 500}, headers=ann))
    work = await node.take()
    over = await client.post(PATH, json={**BODY, "max_output_tokens": 500}, headers=ann)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    answered(node, work, b"{}")
    assert (await asking).headers["x-ratelimit-limit-tokens"] == "1000"
    await until(lambda: wire.zcard("gt:board:queues") == 0)


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, {"store": False}),
        ({"store": False}, {"store": False}),
        ({"store": None, "tools": None, "user": "u"}, {"store": False, "user": "u"}),
        ({"service_tier": None, "tool_choice": None}, {"store": False}),
        ({"background": False, "previous_response_id": None}, {"store": False, "background": False}),
    ],
)
def test_the_engine_is_told_to_keep_nothing_and_has_no_null(fields, sent):
    assert json.loads(wanted(**fields).body) == {**BODY, **sent}


def test_what_needs_no_change_passes_byte_for_byte():
    body = b' {"input" : "\\u00e9", "model":"m", "temperature":0.10}'
    assert (
        parse(PATH, body, key=1).body
        == b' {"store":false,"input" : "\\u00e9", "model":"m", "temperature":0.10}'
    )
    told = b'{"input":"x","model":"m","store":false}'
    assert parse(PATH, told, key=1).body == told


def test_the_items_of_an_answer_can_be_sent_back_as_they_came():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "x"}],
         "content": [{"type": "reasoning_text", "text": "x"}], "encrypted_content": None, "status": None},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "phase": None,
         "content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": None}]},
        {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}",
         "status": "completed", "namespace": None},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": [INPUT]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]},
    ]  # fmt: skip
    tools = [
        {"type": "function", "name": "f", "parameters": {}, "strict": True},
        {"type": "custom", "name": "g", "format": {"type": "text"}},
        {"type": "namespace", "name": "h", "description": "", "tools": [{"type": "function", "name": "f"}]},
    ]
    request = wanted(input=items, tools=tools, tool_choice={"type": "function", "name": "f"})
    assert json.loads(request.body)["input"] == items


def test_tools_of_a_namespace_are_left_to_the_engine():
    tools = [
        {"type": "namespace", "name": "h", "description": "", "tools": [{"type": "function", "name": "f"}]}
    ]
    wanted(tools=tools, tool_choice={"type": "function", "name": "h__f"})
    wanted(tool_choice="auto")


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 1 + 8),
        ({"input": [USER, USER]}, 200 + 8),
        ({"input": [USER], "instructions": "x" * 40}, 110 + 8),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x" * 40}]}, 10 + 8),
        ({"input": [USER], "truncation": "auto"}, 8),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 40}]}]}, 10 + 8),
    ],
)
def test_the_context_that_it_needs_at_least(fields, tokens):
    request = wanted(**fields)
    assert request.tokens_wanted == tokens
    assert request.answer_tokens == 8
    assert prompt.tokens_of_body(request.body, PATH) == tokens


def test_the_next_turn_is_known_by_the_one_before():
    first = wanted(input=[USER], instructions="be brief").prefix
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]}
    turns = [USER, answer, {"role": "user", "content": "and?"}]
    assert first.keep[0] in wanted(input=turns, instructions="be brief").prefix.look
    assert first.keep[0] not in wanted(input=turns, instructions="be long").prefix.look
    assert first.keep[0] not in wanted(input=[{**USER, "content": "z"}], instructions="be brief").prefix.look
    assert wanted(input="a", prompt_cache_key="k").prefix == wanted(input="b", prompt_cache_key="k").prefix


def test_an_image_may_be_fetched_where_the_operator_allows_it(settings):
    settings.ALLOW_URLS = True
    wanted(
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": "https://x.test/a.png"}]}]
    )
