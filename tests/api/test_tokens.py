"""``POST /tokenize`` and ``POST /detokenize`` by both doors: they pass, and cost no tokens."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from api.models import Usage
from jobs.models import Job, JobState
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Done

ASKED = {
    "/tokenize": {"model": "m", "prompt": "x" * 4000},
    "/detokenize": {"model": "m", "tokens": [1, 2, 3]},
}
make = sync_to_async(new_key)


@pytest.mark.parametrize("path", ASKED)
async def test_it_passes_to_a_node_and_costs_a_request_but_no_tokens(door, serve, wire, path):
    node = ScriptedNode(wire, max_model_len=16)  # whatever fits into the model's context or not
    key, secret = await make("ann", requests_per_minute=5, tokens_per_minute=100)
    client = await serve()
    headers = {"Authorization": f"Bearer {secret}"}
    asking = asyncio.create_task(client.post(path, json=ASKED[path], headers=headers))
    work = await node.take()
    assert (work.path, work.stream, json.loads(work.body)) == (path, False, ASKED[path])
    key_of = (work.job, work.attempt, work.lease, 0)
    whole = Done(*key_of, 200, b'{"count": 1,  "x":2}', "application/json", None, 0.0, 5.0)
    node.reply(whole, to=work)
    answer = await asking
    assert (answer.status_code, answer.content) == (200, b'{"count": 1,  "x":2}')
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "100"
    row = await recorded(work.job)
    assert (row.path, row.prompt_tokens, row.completion_tokens) == (path, 0, 0)
    used = await Usage.objects.aget(key=key)
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (1, 0, 0)
    await until(lambda: not wire.keys("gt:limits:open:*"))
    assert not [f for f in wire.hgetall(wire.keys("gt:limits:window:*")[0]) if f.startswith(b"t")]


async def recorded(job: str) -> Job:
    async with asyncio.timeout(10):
        while True:
            if row := await Job.objects.filter(pk=job, state=JobState.COMPLETED).afirst():
                return row
            await asyncio.sleep(0.02)


async def test_a_key_for_other_models_is_refused(door, serve, wire):
    ScriptedNode(wire)
    _, secret = await make("ann", allowed_models=["other"])
    client = await serve()
    answer = await client.post(
        "/tokenize", json=ASKED["/tokenize"], headers={"Authorization": f"Bearer {secret}"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
