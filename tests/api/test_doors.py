"""The whole application in this process, by both doors: what it refuses, and what it answers."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from jobs.models import Job, JobState
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Outcome

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
make = sync_to_async(new_key)


@pytest.fixture
async def key(ledger) -> dict[str, str]:
    """The headers of a caller with a good key."""
    _, secret = await make("ann")
    return {"Authorization": f"Bearer {secret}"}


def error_of(answer) -> dict:
    """The error of a refusal, which must have OpenAI's shape."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


# -- completions, by both doors ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_without_a_good_key_nothing_else_is_looked_at(door, serve, path):
    client = await serve()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
        answer = await client.post(path, content=b"not json", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert error_of(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHAT, HELLO, 404, "model_not_found", "model"),
        (TEXT, {"model": "m", "prompt": "x"}, 404, "model_not_found", "model"),
        (CHAT, {"messages": HELLO["messages"]}, 400, "missing_required_parameter", "model"),
        (CHAT, {"model": "m"}, 400, "missing_required_parameter", "messages"),
        (TEXT, {"model": "m"}, 400, "missing_required_parameter", "prompt"),
        (CHAT, {**HELLO, "temperature": 9}, 400, "invalid_value", "temperature"),
        (CHAT, {**HELLO, "stream_options": {}}, 400, "invalid_value", "stream_options"),
    ],
)
async def test_mistakes_are_refused_in_openais_shape(door, serve, key, path, body, status, code, param):
    answer = await (await serve()).post(path, json=body, headers=key)
    assert answer.status_code == status
    error = error_of(answer)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)


async def test_a_body_that_is_not_json_is_refused(door, serve, key):
    client = await serve()
    for body in (b"", b"{", b"\xff" * 10):
        answer = await client.post(CHAT, content=body, headers=key)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


async def test_a_body_that_is_too_large_is_refused_declared_or_not(door, serve, key, settings):
    settings.MAX_BODY_BYTES = 1000
    client = await serve()

    async def undeclared():
        for _ in range(30):
            yield b" " * 100

    # On a socket who is still sending when the connection is closed may lose the answer.
    for body in (b" " * 1001, undeclared())[: 1 if door == "direct" else 2]:
        answer = await client.post(CHAT, content=body, headers=key)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    answer = await client.post(CHAT, content=json.dumps(HELLO).encode().ljust(1000), headers=key)
    assert answer.status_code == 404  # the largest there may be


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_another_method_is_refused(door, serve, key, method):
    answer = await (await serve()).request(method, CHAT, headers=key)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


async def test_whatever_the_client_accepts_it_gets_json(door, serve, key):
    client = await serve()
    for accept in ("text/event-stream", "text/html", "application/xml;q=0.9"):
        answer = await client.post(CHAT, json=HELLO, headers={**key, "Accept": accept})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


async def test_a_whole_answer_passes_untouched(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=key))
    work = await node.take()
    assert json.loads(work.body) == HELLO
    node.done(work, body=b'{"choices": [1.50],  "id":"x"}')
    answer = await asking
    assert (answer.status_code, answer.content) == (200, b'{"choices": [1.50],  "id":"x"}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == work.job


async def test_a_stream_passes_untouched(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": True}, headers=key))
    work = await node.take()
    assert work.stream
    assert work.hide_usage
    node.chunk(work, 0, b'data: {"a": 1}\n\n')
    node.done(work, 1, b"data: [DONE]\n\n")
    answer = await asking
    assert answer.content == b'data: {"a": 1}\n\ndata: [DONE]\n\n'
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    row = await until_recorded(work.job, JobState.COMPLETED)
    assert (row.prompt_tokens, row.completion_tokens) == (3, 7)


async def until_recorded(job: str, state: JobState) -> Job:
    async with asyncio.timeout(10):
        while True:
            row = await Job.objects.filter(pk=job, state=state).afirst()
            if row:
                return row
            await asyncio.sleep(0.02)


async def test_a_stream_that_breaks_off_says_so_in_an_event(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": True}, headers=key))
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    node.fail(work, Outcome.ENGINE_DIED, 1, "the engine has died")
    answer = await asking
    assert answer.status_code == 200
    first, last, nothing = answer.content.split(b"\n\n")
    assert (first, nothing) == (b"data: 1", b"")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_failed"
    assert error["message"].startswith("the engine has died (request id ")


async def test_a_stream_that_must_wait_is_kept_alive_and_then_served(door, serve, key, wire, settings):
    settings.KEEPALIVE_SECONDS = 0.05
    node = ScriptedNode(wire)
    client = await serve()
    first, second = (
        asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": True}, headers=key)) for _ in range(2)
    )
    work = await node.take()
    await until(lambda: wire.zcard("gt:board:waiting"))
    for _ in range(4):  # a loop that stood still for long has had one of its timers then, not all
        await asyncio.sleep(0.05)
    node.done(work, body=b"data: [DONE]\n\n")
    node.done(await node.take(), body=b"data: [DONE]\n\n")
    answers = [(await first).content, (await second).content]
    waited = max(answers, key=len)
    assert min(answers, key=len) == b"data: [DONE]\n\n"
    assert waited.startswith(b": waiting\n\n: waiting\n\n")
    assert waited.endswith(b"data: [DONE]\n\n")


async def test_the_engines_refusal_keeps_its_status_and_words(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=key))
    node.done(
        await node.take(), body=b'{"error":{"message":"too long","param":"messages","code":400}}', status=400
    )
    answer = await asking
    error = error_of(answer)
    assert (answer.status_code, error["message"], error["param"]) == (400, "too long", "messages")


async def test_a_refusal_that_passes_says_when_to_try_again(door, serve, key, wire):
    ScriptedNode(wire).die()
    answer = await (await serve()).post(CHAT, json=HELLO, headers=key)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "no_workers")
    assert int(answer.headers["retry-after"]) >= 1


# -- the other paths -----------------------------------------------------------------------------------


async def test_an_unknown_path_has_openais_shape_too(serve, key):
    client = await serve()
    for path in ("/v1/nothing", "/v2/chat/completions", "/v1/chat/completions/"):
        answer = await client.post(path, json={}, headers=key)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_url")


async def test_the_admins_style_sheets_are_served(serve):
    answer = await (await serve()).get("/static/admin/css/base.css")
    assert (answer.status_code, answer.headers["content-type"]) == (200, 'text/css; charset="utf-8"')


async def test_models_that_are_served_now_are_listed(serve, key, wire):
    ScriptedNode(wire, "a" * 16, model="org/a", max_model_len=512)
    ScriptedNode(wire, "b" * 16, model="dead").die()
    client = await serve()
    assert (await client.get("/v1/models")).status_code == 401
    listed = (await client.get("/v1/models", headers=key)).json()
    assert listed["object"] == "list"
    assert [(m["id"], m["object"], m["max_model_len"]) for m in listed["data"] if m["id"] != "dead"] == [
        ("org/a", "model", 512)
    ]
    assert (await client.get("/v1/models/org/a", headers=key)).json()["id"] == "org/a"
    missing = await client.get("/v1/models/nothing", headers=key)
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")


async def test_health_needs_no_key_and_readiness_tells_what_is_away(serve, wire):
    client = await serve()
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "redis": "ok", "database": "ok"})
    wire.execute_command("ACL", "SETUSER", "default", "-ping")
    try:
        ready = await client.get("/readyz")
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert ready.status_code == 503
    assert ready.json()["redis"] != "ok"


@pytest.mark.parametrize("path", ["/workers", "/cluster/status"])
async def test_the_clusters_state_is_for_staff(serve, key, path):
    _, boss = await make("boss", staff=True)
    client = await serve()
    assert (await client.get(path)).status_code == 401
    refused = await client.get(path, headers=key)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_permissions")
    assert (await client.get(path, headers={"Authorization": f"Bearer {boss}"})).status_code == 200
