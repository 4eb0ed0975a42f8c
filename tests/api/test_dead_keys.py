"""A key that is revoked, or expires, ends the work that was asked for with it."""

from __future__ import annotations

import asyncio
import json

from asgiref.sync import sync_to_async

from api.authentication import new_key, revoke
from jobs.models import Job, JobState
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Cancel, Work, reply_key

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
make = sync_to_async(new_key)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_streams_end_with_one_event_and_those_who_wait_are_refused(door, serve, wire):
    (ann, secret), (_, other) = await make("ann"), await make("bob")
    node = ScriptedNode(wire, slots=2)
    client = await serve()

    def ask(key: str, **more) -> asyncio.Task:
        return asyncio.create_task(client.post(CHAT, json={**HELLO, **more}, headers=bearer(key)))

    good, stream = ask(other), ask(secret, stream=True)
    works: dict[bool, Work] = {}

    def both() -> bool:
        works.update((work.stream, work) for work in node.inbox())
        return len(works) == 2

    await until(both)
    waiting = ask(secret)
    await until(lambda: wire.zcard("gt:board:waiting") == 1)
    node.chunk(works[True], 0, b'data: {"n":1}\n\n')
    # Read entries are deleted with the next read: what the node wrote has reached the stream.
    await until(lambda: wire.xlen(reply_key(works[True].reply)) == 0)
    await sync_to_async(revoke)(ann)
    answer = await stream
    first, last = [line for line in answer.text.split("\n\n") if line]
    assert first == 'data: {"n":1}'
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    refused = await waiting
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    await until(lambda: wire.xlen(f"gt:node:{node.id}:control"))
    assert node.controls() == [Cancel(works[True].job, 1)]
    node.done(works[False])
    assert (await good).status_code == 200
    ended = Job.objects.filter(key=ann, state=JobState.CANCELLED, error_code="invalid_api_key")
    for _ in range(500):  # rows are written behind
        if await ended.acount() == 2:
            break
        await asyncio.sleep(0.01)
    assert await ended.acount() == 2


async def test_a_key_that_expires_ends_its_work_too(serve, wire):
    _, secret = await make("ann", expires_in_seconds=0.6)
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=bearer(secret)))
    work = await node.take()
    assert (await asking).json()["error"]["code"] == "invalid_api_key"
    await until(lambda: wire.xlen(f"gt:node:{node.id}:control"))
    assert node.controls() == [Cancel(work.job, 1)]


async def test_its_asynchronous_jobs_end_as_well(serve, wire):
    ann, secret = await make("ann")
    ScriptedNode(wire)
    client = await serve()
    id_ = (await client.post("/jobs", json=HELLO, headers=bearer(secret))).json()["id"]
    await sync_to_async(revoke)(ann)
    row = await Job.objects.aget(pk=id_)
    for _ in range(500):
        if row.state != JobState.PENDING:
            break
        await asyncio.sleep(0.02)
        row = await Job.objects.aget(pk=id_)
    assert (row.state, row.error_code, row.request) == (JobState.CANCELLED, "invalid_api_key", None)
