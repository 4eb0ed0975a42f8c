"""``POST /jobs``, ``GET`` and ``DELETE /jobs/{id}``, and what staff may see of the cluster."""

from __future__ import annotations

import asyncio
import datetime
import json

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api.authentication import new_key
from jobs import retention
from jobs.interactive import new_job_id
from jobs.models import Attempt, Job, JobState
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode, until
from tests.nodes.agents import enrol
from worker_agent.contract import Cancel

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "m", "prompt": "hello"}
make = sync_to_async(new_key)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (CHAT, "/v1/chat/completions"),
        (TEXT, "/v1/completions"),
        ({"url": "/v1/completions", "body": TEXT}, "/v1/completions"),
        ({"model": "m", "input": "hello"}, "/v1/embeddings"),
        ({"url": "/v1/embeddings", "body": {"model": "m", "input": [1, 2]}}, "/v1/embeddings"),
        ({"custom_id": "1", "url": "/v1/chat/completions", "body": CHAT}, "/v1/chat/completions"),
    ],
)
async def test_a_job_is_accepted_and_committed(serve, wire, body, path):
    ScriptedNode(wire)
    ann = await caller("ann")
    client = await serve()
    answer = await client.post("/jobs", json=body, headers=ann)
    assert answer.status_code == 202
    told = answer.json()
    assert (told["object"], told["status"], told["model"]) == ("job", "pending", "m")
    assert answer.headers["location"] == f"/jobs/{told['id']}"
    row = await Job.objects.aget(pk=told["id"])
    assert (row.path, row.asynchronous) == (path, True)
    assert json.loads(bytes(row.request or b"")) == body.get("body", body)
    seen = (await client.get(answer.headers["location"], headers=ann)).json()
    assert (seen["id"], seen["status"], seen["url"], seen["result"]) == (told["id"], "pending", path, None)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({**CHAT, "stream": True}, 400, "invalid_value", "stream"),
        ({**CHAT, "model": "other"}, 404, "model_not_found", "model"),
        ({"model": "m"}, 400, "missing_required_parameter", "prompt"),
        ({"url": "/v1/completions"}, 400, "missing_required_parameter", "body"),
        ({"body": CHAT}, 400, "missing_required_parameter", "url"),
        ({"url": "/v1/models", "body": CHAT}, 400, "invalid_value", "url"),
        ({"url": 5, "body": CHAT}, 400, "invalid_value", "url"),
        ({"url": "/v1/completions", "body": "x"}, 400, "invalid_value", None),
        ([], 400, "invalid_json", None),
    ],
)
async def test_a_bad_job_is_refused_and_not_kept(serve, wire, body, status, code, param):
    ScriptedNode(wire)
    ann = await caller("ann")
    answer = await (await serve()).post("/jobs", json=body, headers=ann)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert await Job.objects.acount() == 0


async def test_a_key_sees_its_own_jobs_and_staff_sees_all(serve, wire):
    ScriptedNode(wire)
    ann, bob, boss = await caller("ann"), await caller("bob"), await caller("boss", staff=True)
    client = await serve()
    id_ = (await client.post("/jobs", json=CHAT, headers=ann)).json()["id"]
    status = {}
    for name, headers in (("ann", ann), ("bob", bob), ("boss", boss), ("nobody", {})):
        status[name] = (await client.get(f"/jobs/{id_}", headers=headers)).status_code
    assert status == {"ann": 200, "bob": 404, "boss": 200, "nobody": 401}
    for unknown in ("f" * 32, "x", "chatcmpl-1", id_ + "0"):
        missing = await client.get(f"/jobs/{unknown}", headers=boss)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "job_not_found")
    assert (await client.get(f"/jobs/chatcmpl-{id_}", headers=ann)).status_code == 200


async def test_an_ended_job_shows_its_result_usage_and_attempts(serve):
    _, secret = await make("ann", staff=True)
    node, _ = await sync_to_async(enrol)()
    client = await serve()
    id_ = "a" * 32
    await Job.objects.acreate(
        id=id_, path="/v1/completions", model="m", asynchronous=True, state=JobState.COMPLETED,
        prompt_tokens=3, completion_tokens=7, result=b'{"choices":[]}', why="score 1",
    )  # fmt: skip
    await Attempt.objects.acreate(job_id=id_, number=1, node=node, outcome="done", lease="secret-lease")
    answer = await client.get(f"/jobs/{id_}", headers={"Authorization": f"Bearer {secret}"})
    seen = answer.json()
    assert seen["result"] == {"choices": []}
    assert seen["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert [(a["number"], a["node"], a["outcome"]) for a in seen["attempts"]] == [(1, "box", "done")]
    assert (seen["error"], seen["why"]) == (None, "score 1")
    assert "secret-lease" not in answer.text


async def test_a_failed_job_shows_its_error_and_no_usage(serve):
    ann = await caller("ann", staff=True)
    await Job.objects.acreate(
        id="b" * 32, model="m", state=JobState.FAILED, error_code="c", error_message="why"
    )
    seen = (await (await serve()).get(f"/jobs/{'b' * 32}", headers=ann)).json()
    assert (seen["status"], seen["usage"], seen["error"]) == ("failed", None, {"code": "c", "message": "why"})
    assert "result" not in seen


async def test_a_result_that_is_not_json_is_shown_as_text(serve):
    ann = await caller("ann", staff=True)
    await Job.objects.acreate(
        id="a" * 32,
        model="m",
        asynchronous=True,
        state=JobState.FAILED,
        result=b"too long \xff",
        http_status=413,
    )
    seen = (await (await serve()).get(f"/jobs/{'a' * 32}", headers=ann)).json()
    assert (seen["result"], seen["result_dropped"]) == ("too long \ufffd", False)


async def test_usage_is_shown_as_far_as_it_is_known_and_times_are_counted_from_acceptance(serve):
    ann = await caller("ann", staff=True)
    start = timezone.now() - datetime.timedelta(seconds=100)

    def at(milliseconds: int) -> datetime.datetime:
        return start + datetime.timedelta(milliseconds=milliseconds)

    await Job.objects.acreate(
        id="b" * 32, model="m", state=JobState.CANCELLED, prompt_tokens=3, completion_tokens=1,
        created_at=start, placed_at=at(500), first_token_at=at(600), finished_at=at(1000),
    )  # fmt: skip
    for number, placed in ((1, 20), (2, 500)):
        await Attempt.objects.acreate(job_id="b" * 32, number=number, lease="", placed_at=at(placed))
    seen = (await (await serve()).get(f"/jobs/{'b' * 32}", headers=ann)).json()
    assert seen["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    # The second attempt began later; what was waited for was the first.
    assert seen["timings_ms"] == {"queued": 20.0, "first_token": 600.0, "total": 1000.0}


async def test_the_record_is_there_as_soon_as_the_answer_is(serve, wire, settings):
    settings.RECORD_SECONDS = 3600
    ann = await caller("ann")
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=ann))
    node.done(await node.take(), body=b'{"id":"x"}')
    id_ = (await asking).headers["x-request-id"]
    seen = (await client.get(f"/jobs/chatcmpl-{id_}", headers=ann)).json()
    assert (seen["state"], seen["usage"]["total_tokens"]) == ("completed", 10)


async def test_a_young_job_of_another_process_is_looked_up_once_more(serve, settings):
    settings.RECORD_SECONDS = 1.5
    ann = await caller("ann", staff=True)
    client = await serve()
    id_ = new_job_id()
    asking = asyncio.create_task(client.get(f"/jobs/{id_}", headers=ann))
    await asyncio.sleep(0.1)
    await Job.objects.acreate(id=id_, model="m")
    assert (await asking).status_code == 200


async def test_a_job_that_waits_says_behind_how_many(serve, wire):
    ann = await caller("ann")
    node = ScriptedNode(wire)
    client = await serve()
    asking = [
        asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=ann)) for _ in range(3)
    ]
    await until(lambda: wire.zcard("gt:board:waiting") == 2)
    page = (await client.get("/jobs", params={"state": "pending"}, headers=ann)).json()
    while len(page["data"]) < 2:
        page = (await client.get("/jobs", params={"state": "pending"}, headers=ann)).json()
    seen = [(await client.get(f"/jobs/{job['id']}", headers=ann)).json() for job in page["data"]]
    assert sorted(s["queue"]["position"] for s in seen) == [0, 1]
    for _ in asking:
        node.done(await node.take())
    await asyncio.gather(*asking)
    assert (await client.get(f"/jobs/{seen[0]['id']}", headers=ann)).json()["queue"] is None


async def test_a_result_is_kept_a_while_after_its_owner_read_it(serve, settings):
    ann, boss = await make("ann"), await caller("boss", staff=True)
    headers = {"Authorization": f"Bearer {ann[1]}"}
    await Job.objects.acreate(
        id="a" * 32, model="m", asynchronous=True, state=JobState.COMPLETED, result=b"[1]", key=ann[0],
        http_status=200, finished_at=timezone.now(),
    )  # fmt: skip
    client = await serve()
    tidy = sync_to_async(retention.tidy)
    settings.RESULT_READ_SECONDS = 0
    seen = (await client.get(f"/jobs/{'a' * 32}", headers=boss)).json()
    assert (seen["result"], seen["result_dropped"]) == ([1], False)
    await tidy()
    settings.RESULT_READ_SECONDS = 300
    for _ in range(2):
        seen = (await client.get(f"/jobs/{'a' * 32}", headers=headers)).json()
        assert (seen["result"], seen["result_dropped"]) == ([1], False)
        await tidy()
    settings.RESULT_READ_SECONDS = 0
    await tidy()
    seen = (await client.get(f"/jobs/{'a' * 32}", headers=headers)).json()
    assert (seen["result"], seen["result_dropped"], seen["state"]) == (None, True, "completed")


@pytest.mark.parametrize("stream", [True, False])
async def test_delete_ends_a_job_whose_caller_waits(door, serve, wire, stream):
    ann, bob = await caller("ann"), await caller("bob")
    node = ScriptedNode(wire)
    client = await serve()
    body = {**CHAT, "stream": stream}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=ann))
    work = await node.take()
    if stream:
        node.chunk(work, 0, b'data: {"n":1}\n\n')
    assert (await client.delete(f"/jobs/{work.job}", headers=bob)).status_code == 404
    assert (await client.delete(f"/jobs/{work.job}")).status_code == 401
    deleted = await client.delete(f"/jobs/chatcmpl-{work.job}", headers=ann)
    assert deleted.status_code == 200
    assert (deleted.json()["state"], deleted.json()["error"]["code"]) == ("cancelled", "cancelled")
    answer = await asking
    if stream:
        *_, last = [line for line in answer.text.split("\n\n") if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"
        assert "[DONE]" not in answer.text
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cancelled")
        assert answer.headers["x-should-retry"] == "false"
    assert node.controls() == [Cancel(work.job, 1)]
    again = (await client.delete(f"/jobs/{work.job}", headers=ann)).json()
    assert (again["state"], again["finished"]) == ("cancelled", deleted.json()["finished"])


async def test_delete_reaches_a_job_that_another_process_answers(serve, wire):
    ann = await caller("ann")
    node = ScriptedNode(wire)
    here, there = await serve(), await serve()
    asking = asyncio.create_task(there.post("/v1/chat/completions", json=CHAT, headers=ann))
    work = await node.take()
    deleted = await here.delete(f"/jobs/{work.job}", headers=ann)
    assert deleted.json()["state"] == "cancelled"
    assert (await asking).json()["error"]["code"] == "cancelled"
    assert node.controls() == [Cancel(work.job, 1)]


async def test_delete_ends_an_asynchronous_job_and_drops_what_it_left(serve, wire):
    ScriptedNode(wire)
    ann = await caller("ann", staff=True)
    client = await serve()
    id_ = (await client.post("/jobs", json=CHAT, headers=ann)).json()["id"]
    for _ in range(2):
        deleted = (await client.delete(f"/jobs/{id_}", headers=ann)).json()
        assert (deleted["state"], deleted["result"], deleted["result_dropped"]) == ("cancelled", None, False)
    assert (await Job.objects.aget()).request is None
    await Job.objects.acreate(
        id="a" * 32, model="m", asynchronous=True, state=JobState.COMPLETED, result=b"[1]", http_status=200
    )
    deleted = (await client.delete(f"/jobs/{'a' * 32}", headers=ann)).json()
    assert (deleted["state"], deleted["result"], deleted["result_dropped"]) == ("completed", None, True)


async def test_staff_sees_workers_without_their_secrets(serve):
    node, identity = await sync_to_async(enrol)()
    boss = await caller("boss", staff=True)
    answer = await (await serve()).get("/workers", headers=boss)
    (worker,) = answer.json()["data"]
    assert (worker["id"], worker["name"], worker["state"]) == (node.pk, "box", "online")
    assert [g["name"] for g in worker["gpus"]] == ["RTX 4090"]
    assert [(m["name"], m["state"], m["slots"]) for m in worker["models"]] == [("m", "ready", 4)]
    for secret in (identity.secret, identity.redis.password, node.secret_hash, node.redis_password_sha256):
        assert secret not in answer.text


async def test_the_cluster_in_one_object(serve, wire):
    node, _ = await sync_to_async(enrol)()
    wire.set(f"gt:node:{node.pk}:lease", "1")
    boss = await caller("boss", staff=True)
    for n, state in enumerate([JobState.PENDING, JobState.RUNNING, JobState.COMPLETED]):
        await Job.objects.acreate(id=str(n) * 32, model="m", state=state)
    status = (await (await serve()).get("/cluster/status", headers=boss)).json()
    assert status["nodes"]["online"] == 1
    assert (status["jobs"], status["waiting"]) == ({"pending": 1, "running": 1}, 0)
    (m,) = status["models"]
    assert (m["id"], m["nodes_ready"], m["slots"], m["in_flight"], m["waiting"]) == ("m", 1, 4, 0, 0)
