"""``POST /v1/embeddings`` by both doors: what goes to the engine, what comes back, what is counted."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from api.schemas import parse
from jobs.models import Job, JobState
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Done, Usage

PATH = "/v1/embeddings"
BODY = {"model": "m", "input": ["one two", "three"], "encoding_format": "base64", "dimensions": 2}
ANSWER = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AAAAAA=="}],  "model":"m"}'
NO_PATH = "The model is not made for such requests: its engine does not know this path."
make = sync_to_async(new_key)


async def recorded(job: str, state: JobState) -> Job:
    async with asyncio.timeout(10):
        while True:
            if row := await Job.objects.filter(pk=job, state=state).afirst():
                return row
            await asyncio.sleep(0.02)


def embedded(node: ScriptedNode, work, tokens: int = 3) -> None:
    usage = Usage(prompt_tokens=tokens, completion_tokens=0)
    key = (work.job, work.attempt, work.lease, 0)
    node.reply(Done(*key, 200, ANSWER, "application/json", usage, 0.0, 5.0), to=work)


async def test_the_engine_gets_the_callers_bytes_and_the_caller_the_engines(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json=BODY, headers=ann))
    work = await node.take()
    assert (work.path, work.stream, json.loads(work.body)) == (PATH, False, BODY)
    embedded(node, work)
    answer = await asking
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-job-id"] == work.job
    row = await recorded(work.job, JobState.COMPLETED)
    assert (row.path, row.prompt_tokens, row.completion_tokens) == (PATH, 3, 0)


async def test_limits_reserve_the_inputs_and_nothing_for_an_answer(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller(tokens_per_minute=1000)
    client = await serve()
    body = {"model": "m", "input": "x" * 400}
    asking = asyncio.create_task(client.post(PATH, json=body, headers=ann))
    work = await node.take()
    left = int((await _reserved(wire))[0])
    assert left == len(work.body) // 4 + 1
    embedded(node, work, tokens=70)
    answer = await asking
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 1000 - left
    await until(lambda: not wire.keys("gt:limits:reserved:*"))
    window = wire.hgetall(wire.keys("gt:limits:window:*")[0])
    assert int(window[b"t"]) == 70


async def _reserved(wire) -> list[bytes]:
    keys = await until(lambda: wire.keys("gt:limits:reserved:*"))
    return wire.mget(keys)


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        (
            {"detail": "Not Found"},
            "The model is not made for such requests: its engine does not know this path.",
        ),
        ({"error": {"message": "no such thing", "code": 404}}, "no such thing"),
    ],
)
async def test_a_model_that_makes_no_vectors_is_refused_in_words(door, serve, wire, detail, said):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(PATH, json=BODY, headers=ann))
    node.done(await node.take(), body=json.dumps(detail).encode(), status=404)
    answer = await asking
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["message"]) == (404, "rejected_by_engine", said)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a b", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1], [2], [3, 4]], 3)],
)
def test_each_input_may_be_as_long_as_the_context(given, prompts):
    request = parse(PATH, json.dumps({"model": "m", "input": given}).encode(), key=1)
    assert (request.prompts, request.answer_tokens) == (prompts, 0)
    request = parse("/v1/completions", json.dumps({"model": "m", "prompt": given}).encode(), key=1)
    assert (request.prompts, request.answer_tokens) == (prompts, None)
