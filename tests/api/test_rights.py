"""What a key may use: by the doors, down to the node that gets the work."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key, rotate
from jobs import asynchronous
from jobs.models import Job, JobState
from nodes.models import Node, NodeState
from tests.api.callers import caller
from tests.jobs.desk import Desk
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import ModelState, Outcome

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
A, B = "a" * 16, "b" * 16


def say(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


@sync_to_async
def known(id_: str, **fields: Any) -> None:
    """A node in the ledger, as registration leaves it."""
    fields = {"name": f"node-{id_[:4]}", "state": NodeState.ONLINE, **fields}
    Node.objects.create(id=id_, secret_hash="", **fields)


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


# -- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [(["m"], "m", "mm"), (["m*"], "mm", "other"), (["x", "a/b*"], "a/b-c", "m"), (["*"], "other", None)],
)
async def test_a_key_may_use_the_models_it_names(serve, wire, allowed, good, bad):
    for n, model in enumerate(("m", "mm", "other", "a/b-c")):
        ScriptedNode(wire, str(n) * 16, model=model)
    ann = await caller(allowed_models=allowed)
    client = await serve()
    listed = {m["id"] for m in (await client.get("/v1/models", headers=ann)).json()["data"]}
    assert good in listed
    assert (await client.get(f"/v1/models/{good}", headers=ann)).status_code == 200
    assert (await client.post("/jobs", json=say(good), headers=ann)).status_code == 202
    if bad is None:
        return
    assert bad not in listed
    for answer in (
        await client.get(f"/v1/models/{bad}", headers=ann),
        await client.post("/jobs", json=say(bad), headers=ann),
        await client.post(CHAT, json=say(bad), headers=ann),
        await client.post(TEXT, json={"model": bad, "prompt": "x"}, headers=ann),
    ):
        assert (answer.status_code, code(answer)) == (404, "model_not_found")


# -- nodes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [["node-bbbb"], [B], ["zone=eu"], ["nowhere", "zone=eu"]])
async def test_only_the_nodes_it_names_see_its_prompts(serve, wire, allowed):
    await known(A, labels={"zone": "us"})
    await known(B, labels={"zone": "eu", "disk": "ssd"})
    other, theirs = ScriptedNode(wire, A, slots=9), ScriptedNode(wire, B, slots=1)
    ann = await caller(allowed_nodes=allowed)
    client = await serve()
    asking = [asyncio.create_task(client.post(CHAT, json=say(), headers=ann)) for _ in range(3)]
    for _ in asking:  # one runs, two wait, while the other node is idle
        work = await theirs.take()
        assert not other.inbox()
        theirs.done(work)
    assert [a.status_code for a in await asyncio.gather(*asking)] == [200] * 3


async def test_a_node_that_joins_later_does_not_get_what_waits_for_another(desk: Desk, wire):
    theirs = ScriptedNode(wire, A)
    await desk.refresh()
    first = desk.ask(only=frozenset({A}))
    work = await theirs.take()
    second = desk.ask(only=frozenset({A}))
    await until(lambda: second.job and second.job.attempt)
    stranger = ScriptedNode(wire, B, slots=5)
    await desk.refresh()  # offers the newcomer to those who wait
    await desk.dispatcher.board.fill([stranger.place])
    assert not stranger.inbox()
    third = desk.ask()
    stranger.done(await stranger.take())
    await third.first()
    theirs.done(work)
    await first.first()
    theirs.done(await theirs.take())
    await second.first()


@pytest.mark.parametrize("allowed", [["nowhere"], ["node-bbbb"]])
async def test_where_none_of_its_nodes_serves_the_model_it_says_so(serve, wire, allowed):
    await known(A)
    await known(B)
    idle = ScriptedNode(wire, A)
    ann = await caller(allowed_nodes=allowed)
    client = await serve()
    answer = await client.post(CHAT, json=say(), headers=ann)
    assert (answer.status_code, code(answer)) == (503, "no_workers")
    assert "this key" in answer.json()["error"]["message"]
    assert not idle.inbox()
    assert (await client.get("/v1/models", headers=ann)).json()["data"] == []


async def test_asynchronous_work_goes_to_its_nodes_only_and_waits_for_them(serve, wire):
    await known(A)
    await known(B)
    other = ScriptedNode(wire, A, slots=9)
    ann = await caller(allowed_nodes=["node-bbbb"], priority=-5)
    client = await serve()
    job = (await client.post("/jobs", json=say(), headers=ann)).json()["id"]
    with pytest.raises(asynchronous.TryAgainLater):
        await asynchronous.route(job)
    theirs = ScriptedNode(wire, B)
    assert B in await asynchronous.route(job)
    assert [w.job for w in theirs.inbox()] == [job]
    assert not other.inbox()


async def test_a_key_of_higher_priority_is_served_first(serve, wire):
    node = ScriptedNode(wire)
    low, high = await caller(), await caller(priority=5)
    client = await serve()
    asking = [asyncio.create_task(client.post(CHAT, json=say(), headers=low))]
    work = await node.take()
    for headers in (low, high):
        asking.append(
            asyncio.create_task(client.post(CHAT, json=say(user=str(len(asking))), headers=headers))
        )
        await until(lambda: wire.zcard("gt:board:waiting") == len(asking) - 1)
    order = []
    for _ in asking[1:]:
        node.done(work)
        work = await node.take()
        order.append(b'"user":"2"' in work.body)
    node.done(work)
    await asyncio.gather(*asking)
    assert order == [True, False]


# -- secrets -------------------------------------------------------------------------------------------


async def test_a_rotated_key_has_two_secrets_for_its_grace_and_one_without(serve, wire):
    row, first = await sync_to_async(new_key)("ann")
    client = await serve()

    async def opens(secret: str) -> bool:
        answer = await client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
        return answer.status_code == 200

    async def seen(secret: str, good: bool = True) -> None:
        async with asyncio.timeout(10):
            while await opens(secret) != good:  # noqa: ASYNC110 - another task reads the keys
                await asyncio.sleep(0.01)

    await seen(first)
    second = await sync_to_async(rotate)(row, grace_seconds=3600)
    await seen(second)
    assert await opens(first)
    third = await sync_to_async(rotate)(row, grace_seconds=0.2)
    await seen(third)
    assert not await opens(first)
    await seen(second, good=False)
    fourth = await sync_to_async(rotate)(row)
    await seen(fourth)
    assert not await opens(third)


# -- limits, by the doors ------------------------------------------------------------------------------


async def test_limits_are_told_in_headers_and_kept(door, serve, wire):
    node = ScriptedNode(wire, slots=4)
    ann = await caller(requests_per_minute=2, tokens_per_minute=10_000)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=say(max_tokens=50), headers=ann))
    node.done(await node.take())
    answer = await asking
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-ratelimit-limit-tokens"] == "10000"
    assert 9_900 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 9_950
    asking = asyncio.create_task(client.post(CHAT, json=say(stream=True), headers=ann))
    node.done(await node.take(), body=b"data: [DONE]\n\n")
    assert (await asking).headers["x-ratelimit-remaining-requests"] == "0"
    answer = await client.post(CHAT, json=say(), headers=ann)
    assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(answer.headers["retry-after"]) <= 61
    answer = await client.post("/jobs", json=say(), headers=ann)
    assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")


async def test_a_refusal_by_the_board_costs_no_request(serve, wire):
    ann = await caller(requests_per_minute=1, concurrency=1)
    node = ScriptedNode(wire)
    node.die()
    client = await serve()
    for _ in range(3):
        answer = await client.post(CHAT, json=say(), headers=ann)
        assert (answer.status_code, code(answer)) == (503, "no_workers")
        assert answer.headers["x-ratelimit-limit-requests"] == "1"
        await until(lambda: not wire.keys("gt:limits:open:*"))


async def whole(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    node.done(await node.take())
    assert (await asking).status_code == 200


async def rejected(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    node.done(await node.take(), body=b'{"error":{"message":"no"}}', status=400)
    assert (await asking).status_code == 400


async def streamed(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(stream=True), headers=ann))
    work = await node.take()
    node.chunk(work, 0, b"data: {}\n\n")
    node.done(work, 1, b"data: [DONE]\n\n")
    assert b"[DONE]" in (await asking).content


async def broken_off(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(stream=True), headers=ann))
    work = await node.take()
    node.chunk(work, 0, b"data: {}\n\n")
    node.fail(work, Outcome.ENGINE_DIED, 1)
    assert b"upstream_failed" in (await asking).content


async def failed(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    node.fail(await node.take(), Outcome.TOTAL_TIMEOUT)
    assert (await asking).status_code == 502


async def left_before(client, node, ann):
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    work = await node.take()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await until(node.controls)
    node.fail(work, Outcome.CANCELLED)


def is_free_again(wire: Any) -> bool:
    return not wire.keys("gt:limits:open:*") and not wire.keys("gt:limits:reserved:*")


@pytest.mark.parametrize(
    "end",
    [whole, rejected, streamed, broken_off, failed, left_before],
    ids=lambda e: e.__name__,
)
async def test_however_a_request_ends_its_place_is_free_again(serve, wire, end):
    node = ScriptedNode(wire)
    ann = await caller(concurrency=1, tokens_per_day=100_000)
    client = await serve()
    await end(client, node, ann)
    await until(lambda: is_free_again(wire))


async def test_who_leaves_while_waiting_has_a_free_place_again(serve, wire):
    node = ScriptedNode(wire)
    ann, bob = await caller(concurrency=1, tokens_per_day=100_000), await caller("bob")
    client = await serve()
    others = asyncio.create_task(client.post(CHAT, json=say(), headers=bob))
    work = await node.take()
    asking = asyncio.create_task(client.post(CHAT, json=say(stream=True), headers=ann))
    await until(lambda: wire.zcard("gt:board:waiting"))
    assert not is_free_again(wire)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await until(lambda: is_free_again(wire))
    node.done(work)
    assert (await others).status_code == 200


async def test_one_more_than_its_concurrency_is_refused_meanwhile(serve, wire):
    node = ScriptedNode(wire, slots=4)
    ann, bob = await caller(concurrency=1), await caller()
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    work = await node.take()
    answer = await client.post(CHAT, json=say(), headers=ann)
    assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "1"
    others = asyncio.create_task(client.post(CHAT, json=say(), headers=bob))
    node.done(await node.take())
    node.done(work)
    assert {(await asking).status_code, (await others).status_code} == {200}


async def test_no_more_is_reserved_for_a_prompt_than_the_longest_context(serve, wire):
    for node, longest in ((A, 2048), (B, 4096)):
        ScriptedNode(wire, node, max_model_len=longest)
    ann, client = await caller(tokens_per_minute=10_000), await serve()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    wanted = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": [picture]}]}
    asking = asyncio.create_task(client.post(CHAT, json=wanted, headers=ann))
    window = await until(lambda: wire.keys("gt:limits:window:*"))
    assert wire.hget(window[0], "t") == b"4106"
    asking.cancel()


async def test_what_the_limits_refuse_leaves_no_trace(serve, wire):
    asleep = ScriptedNode(wire, model="asleep", state=ModelState.OFFERED)
    node = ScriptedNode(wire, B, slots=4)
    ann = await caller(requests_per_minute=1)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
    node.done(await node.take())
    assert (await asking).status_code == 200
    for wanted in (say(), say(stream=True), say("asleep"), say("nobody-has-it")):
        answer = await client.post(CHAT, json=wanted, headers=ann)
        assert (answer.status_code, code(answer)) == (429, "rate_limit_exceeded")
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert "x-gputorrent-job" not in answer.headers
    assert (node.inbox(), asleep.inbox(), asleep.controls()) == ([], [], [])
    assert wire.zcard("gt:board:waiting") == 0
    held = lambda: [key for key in wire.keys("gt:limits:*") if b":open:" in key or b":reserved:" in key]  # noqa: E731
    await until(lambda: not held())
    for _ in range(100):  # records are written behind
        if listed := (await client.get("/jobs", headers=ann)).json()["data"]:
            break
        await asyncio.sleep(0.05)
    assert [job["state"] for job in listed] == ["completed"]


async def test_scripts_that_redis_has_forgotten_cost_nobody_an_answer(serve, wire):
    node = ScriptedNode(wire, slots=4)
    ann = await caller(requests_per_minute=9, concurrency=1)
    client = await serve()
    for left in ("8", "7", "6"):
        wire.script_flush()
        asking = asyncio.create_task(client.post(CHAT, json=say(), headers=ann))
        node.done(await node.take())
        answer = await asking
        assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, left)
        await until(lambda: not wire.keys("gt:limits:open:*"))


async def test_an_asynchronous_job_takes_its_real_tokens_from_the_budget(serve, wire):
    ScriptedNode(wire)
    ann = await caller(tokens_per_day=1000, concurrency=1)
    client = await serve()
    job = (await client.post("/jobs", json=say(max_tokens=400), headers=ann)).json()["id"]
    answer = await client.post("/jobs", json=say(max_tokens=600), headers=ann)
    assert (answer.status_code, code(answer)) == (429, "insufficient_quota")
    row = await Job.objects.aget(pk=job)

    def end() -> None:
        from jobs.lifecycle import Move, move

        assert move(row, Move.FAIL, prompt_tokens=5, completion_tokens=95)

    await sync_to_async(end)()
    assert (await Job.objects.aget(pk=job)).state == JobState.FAILED
    assert not wire.keys("gt:limits:deferred:*")
    assert (await client.post("/jobs", json=say(max_tokens=600), headers=ann)).status_code == 202
