"""``GET /metrics``: who may read it, that Prometheus can, and that it agrees with the ledger."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from api.authentication import new_key
from jobs import asynchronous
from jobs.board import Board
from jobs.models import TERMINAL, Attempt, Batch, Job
from nodes.models import Gpu, Node, NodeModel, NodeState
from tests.api import promtool
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode, done
from worker_agent.contract import Outcome, Report

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TOKEN = {"Authorization": "Bearer for-prometheus"}


@pytest.fixture(autouse=True)
def _token(settings):
    settings.METRICS_TOKEN = "for-prometheus"


@pytest.fixture
async def key(ledger):
    return await caller("alice")


def parsed(answer):
    """Sample -> value; a sample is a name and its labels."""
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples.get((f"gputorrent_{name}", *sorted(labels.items())))


async def test_only_staff_and_the_token_may_read(serve, key, settings):
    _, boss = await sync_to_async(new_key)("boss", staff=True)
    client = await serve()
    assert (await client.get("/metrics")).status_code == 401
    assert (await client.get("/metrics", headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await client.get("/metrics", headers=key)).status_code == 403
    for good in (TOKEN, {"Authorization": f"Bearer {boss}"}):
        answer = await client.get("/metrics", headers=good)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    settings.METRICS_TOKEN = ""
    assert (await client.get("/metrics", headers={"Authorization": "Bearer "})).status_code == 401
    user = await sync_to_async(User.objects.create_user)("operator", password="x", is_staff=True)
    browser = AsyncClient()
    await browser.aforce_login(user)
    client.cookies.update({name: morsel.value for name, morsel in browser.cookies.items()})
    assert (await client.get("/metrics")).status_code == 200


async def test_the_token_opens_no_other_door(serve):
    client = await serve()
    for path in ("/workers", "/cluster/status", "/v1/models"):
        assert (await client.get(path, headers=TOKEN)).status_code == 401


async def put(model):
    """A row with a GPU, as heartbeats would leave it."""
    node = await Node.objects.acreate(
        id="a" * 16, name='odd "name"\\\n', state=NodeState.ONLINE, incarnation=1, cpu_usage=0.5
    )
    await Gpu.objects.acreate(
        node=node, index=0, uuid="g", name="A100", vram_total=80, vram_free=20, utilisation=0.75
    )
    await NodeModel.objects.acreate(node=node, name=model, state="ready", slots=4, kv_cache_usage=0.25)
    return node


async def test_the_state_of_nodes_queues_and_processes_is_shown(serve, wire):
    node = ScriptedNode(wire, slots=4)
    row = await put("m")
    node.node.name = row.name
    node.publish()
    wire.hset("gt:heals", "slot", 3)
    wire.rpush("rq:queue:routing", "x")
    for n, status in enumerate(("in_progress", "in_progress", "failed")):
        await Batch.objects.acreate(id=f"batch_{n}", status=status, expires_at=timezone.now())
    client = await serve()
    samples = parsed(await client.get("/metrics", headers=TOKEN))
    name = row.name
    assert value(samples, "up", part="redis") == value(samples, "up", part="database") == 1
    assert value(samples, "node_up", node=name) == 1
    assert value(samples, "node_state", node=name, state="online") == 1
    assert value(samples, "node_state", node=name, state="draining") == 0
    assert value(samples, "slots", node=name, model="m") == 4
    assert value(samples, "in_flight", node=name, model="m") == 0
    assert value(samples, "queue_depth", model="m") == 0
    assert value(samples, "model_workers", model="m") == 1
    assert value(samples, "gpu_utilisation_ratio", node=name, gpu="0") == 0.75
    assert value(samples, "gpu_vram_free_bytes", node=name, gpu="0") == 20
    assert value(samples, "gpu_temperature_celsius", node=name, gpu="0") is None  # the GPU does not say
    assert value(samples, "model_kv_cache_ratio", node=name, model="m") == 0.25
    assert value(samples, "heals_total", kind="slot") == 3
    assert value(samples, "deferred_tasks", queue="routing") == 1
    assert value(samples, "stale_replies_total") == 0
    assert value(samples, "batches", status="in_progress") == 2
    assert value(samples, "batches", status="completed") == 0
    (fds,) = [v for s, v in samples.items() if s[0] == "gputorrent_process_open_fds"]
    assert fds > 3


@promtool.needs_promtool
async def test_prometheus_own_checker_is_content(serve, key, wire):
    node = ScriptedNode(wire)
    await put("m")
    wire.hset("gt:heals", "slot", 3)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=key))
    node.done(await node.take())
    await asking
    await counted(client, 1)
    answer = await client.get("/metrics", headers=TOKEN)
    assert promtool.check("metrics", stdin=answer.content) == ""


async def counted(client, requests):
    """The samples, once so many requests have been counted."""
    async with asyncio.timeout(15):
        while True:
            samples = parsed(await client.get("/metrics", headers=TOKEN))
            if sum(v for s, v in samples.items() if s[0] == "gputorrent_requests_total") >= requests:
                return samples
            await asyncio.sleep(0.1)


async def test_after_a_run_the_counters_agree_with_the_ledger(serve, key, wire, pipe):
    """Every kind of end, then the same sums from both sides."""
    await Node.objects.acreate(id="a" * 16, name="node-aaaa", state=NodeState.ONLINE, incarnation=1)
    node = ScriptedNode(wire, slots=2)
    client = await serve()

    async def ask(stream, answer):
        asking = asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": stream}, headers=key))
        answer(await node.take())
        return await asking

    def breaks(work):
        node.chunk(work, 0, b"data: 1\n\n")
        node.fail(work, Outcome.STALLED, 1)

    for _ in range(3):
        await ask(False, node.done)
    await ask(True, lambda work: node.done(work, body=b"data: [DONE]\n\n"))
    await ask(False, lambda work: node.done(work, status=400))
    await ask(True, breaks)
    await ask(False, lambda work: node.fail(work, Outcome.TOTAL_TIMEOUT))
    leaving = asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": True}, headers=key))
    work = await node.take()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    node.fail(work, Outcome.CANCELLED)
    for wrong in ({"model": "invented", "messages": HELLO["messages"]}, {}):
        assert (await client.post(CHAT, json=wrong, headers=key)).status_code >= 400
    assert (await client.post(CHAT, json=HELLO)).status_code == 401
    await asynchronously(client, key, node, pipe)

    samples = await counted(client, 12)
    rows = [job async for job in Job.objects.filter(state__in=TERMINAL)]
    assert len(rows) == 9
    assert by(samples, "jobs", "model", "state") == Counter((j.model, j.state) for j in rows)
    mode = {False: "whole", True: "stream"}
    ends = Counter(
        (
            j.model,
            "asynchronous" if j.asynchronous else mode[j.stream],
            "completed" if j.state == "completed" else j.error_code,
        )
        for j in rows
    )
    counts = by(samples, "requests", "model", "mode", "outcome")
    refused = {
        ("unknown", "whole", "model_not_found"): 1,
        ("unknown", "unknown", "missing_required_parameter"): 1,
        ("unknown", "unknown", "invalid_api_key"): 1,
    }
    assert counts == ends + Counter(refused)
    outcomes = Counter([a.outcome async for a in Attempt.objects.all()])
    assert by(samples, "attempts", "outcome") == {(o,): n for o, n in outcomes.items()}
    for name, column in (("prompt_tokens", "prompt_tokens"), ("completion_tokens", "completion_tokens")):
        assert by(samples, name, "model") == {("m",): sum(getattr(j, column) for j in rows)}
    answered = sum(j.state == "completed" for j in rows)
    assert sum(by(samples, "request_duration_seconds", "mode", suffix="_count").values()) == answered
    begun = Counter(
        "asynchronous" if j.asynchronous else mode[j.stream]
        for j in rows
        if j.first_token_at and (j.http_status or 200) < 400
    )
    firsts = by(samples, "time_to_first_token_seconds", "mode", suffix="_count")
    assert firsts == {(m,): n for m, n in begun.items()}
    text = json.dumps(list(map(str, samples)))
    assert "invented" not in text
    assert "hello" not in text


def by(samples, name, *labels, suffix="_total"):
    """The sums of a family by some of its labels, leaving out zeros."""
    found: Counter[tuple[str, ...]] = Counter()
    for (sample, *pairs), v in samples.items():
        if sample == f"gputorrent_{name}{suffix}":
            found[tuple(dict(pairs)[label] for label in labels)] += int(v)
    return +found


async def asynchronously(client, key, node, pipe):
    """An asynchronous job, routed and answered as the jobworker and the node would."""
    job = (await client.post("/jobs", json=HELLO, headers=key)).json()["id"]
    assert await asynchronous.route(job) == f"placed on {node.id}"
    work = await node.take()
    row = await Node.objects.aget(pk=node.id)
    report = Report(1, job, work.attempt, work.lease, done(work, 0, b'{"a": 1}'))
    await asynchronous.report(row, report, Board(pipe))


async def test_each_process_answers_for_all(serve, key, wire):
    ScriptedNode(wire)
    clients = [await serve(), await serve()]
    for client in clients:
        assert (await client.post(CHAT, json={**HELLO, "model": "none"}, headers=key)).status_code == 404
    for client in clients:
        samples = await counted(client, 2)
        assert by(samples, "requests", "outcome") == {("model_not_found",): 2}
        assert by(samples, "errors", "code") == {("model_not_found",): 2}


async def test_what_is_away_is_left_out_and_said(serve, wire):
    client = await serve()
    wire.execute_command("ACL", "SETUSER", "default", "-hgetall")
    try:
        samples = parsed(await client.get("/metrics", headers=TOKEN))
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert (value(samples, "up", part="redis"), value(samples, "up", part="database")) == (0, 1)
    assert value(samples, "stale_replies_total") is None  # not 0: that would be a reset


async def test_the_clusters_status_has_the_rates_of_the_last_minute(serve, wire):
    _, boss = await sync_to_async(new_key)("boss", staff=True)
    staff = {"Authorization": f"Bearer {boss}"}
    node = ScriptedNode(wire)
    client = await serve()
    for status in (200, 200, 200, 400):
        asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=staff))
        node.done(await node.take(), status=status)
        await asking
    await counted(client, 4)
    told = (await client.get("/cluster/status", headers=staff)).json()
    (model,) = told["models"]
    for rates in (told["rates"], model["rates"]):
        seconds = rates["seconds"]
        assert 60 <= seconds <= 66
        assert rates["requests_per_s"] == pytest.approx(4 / seconds, abs=0.001)
        assert rates["errors_per_s"] == pytest.approx(1 / seconds, abs=0.001)
        assert rates["completion_tokens_per_s"] == pytest.approx(21 / seconds, abs=0.01)
        assert 0 < rates["ttft_p50_s"] <= rates["ttft_p95_s"]
    wire.delete(*wire.keys("gt:metrics:recent:*"))
    quiet = (await client.get("/cluster/status", headers=staff)).json()["rates"]
    assert (quiet["requests_per_s"], quiet["ttft_p50_s"]) == (0, None)


async def test_errors_of_every_door_are_counted(serve, key, wire):
    client = await serve()
    await client.get("/workers", headers=key)
    await client.get("/jobs/none", headers=key)
    await client.post(CHAT, json={}, headers=key)
    samples = await counted(client, 1)
    assert by(samples, "errors", "code") == {
        ("insufficient_permissions",): 1,
        ("job_not_found",): 1,
        ("missing_required_parameter",): 1,
    }
