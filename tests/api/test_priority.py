"""``X-Priority``, by every door, and what is refused before it comes to a node."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async

from api import priority
from api.authentication import Caller, new_key
from api.errors import ApiError
from jobs import poison
from jobs.models import Job
from tests.api.callers import caller
from tests.jobs.desk import request
from tests.jobs.scripted import ScriptedNode, until

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def key(ledger) -> dict[str, str]:
    return await caller()


def asked(most: int, header: str) -> int:
    return priority.apply(request(), Caller(1, "ann", False, 0.0, priority=most), header).priority


@pytest.mark.parametrize(
    ("most", "header", "expected"),
    [
        (0, "", 0),
        (7, "", 7),
        (-3, "", -3),
        (7, "5", 5),
        (7, "-100", -100),
        (7, "100", 7),
        (-3, "0", -3),
        (0, " +0 ", 0),
    ],
)
def test_a_request_may_ask_for_less_than_its_key_has(most, header, expected):
    assert asked(most, header) == expected


@pytest.mark.parametrize("header", ["high", "1.5", "101", "-101", "1e2", "٣", " ", "0x1", "99999999999999"])
def test_what_is_no_priority_is_refused_by_the_headers_name(header):
    with pytest.raises(ApiError) as caught:
        asked(0, header)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "invalid_value",
        "x-priority",
    )


async def test_a_request_that_can_wait_is_overtaken(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()

    def ask(**headers: str) -> asyncio.Task:
        return asyncio.create_task(client.post(CHAT, json=HELLO, headers={**key, **headers}))

    asking = [ask()]
    work = await node.take()
    asking.append(ask(**{"X-Priority": "-5"}))
    await until(lambda: wire.zcard("gt:board:waiting") == 1)
    (low,) = wire.zrange("gt:board:queue:m", 0, -1)
    asking.append(ask())
    await until(lambda: wire.zcard("gt:board:waiting") == 2)
    order = [work.job]
    for _ in range(2):
        node.done(work)
        work = await node.take()
        order.append(work.job)
    node.done(work)
    assert order[2] == low.decode()
    for answer in await asyncio.gather(*asking):
        assert answer.status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/jobs"])
async def test_a_header_that_says_nothing_is_refused_at_every_door(door, serve, key, wire, path):
    ScriptedNode(wire)
    answer = await (await serve()).post(path, json=HELLO, headers={**key, "X-Priority": "soon"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "x-priority")
    assert await Job.objects.acount() == 0


async def test_a_job_keeps_its_priority(serve, key, wire):
    ScriptedNode(wire)
    answer = await (await serve()).post("/jobs", json=HELLO, headers={**key, "X-Priority": "-9"})
    assert answer.status_code == 202
    assert (await Job.objects.aget()).priority == -9


@pytest.mark.parametrize("path", [CHAT, "/jobs"])
async def test_a_request_that_is_held_off_is_refused_for_good(door, serve, key, wire, settings, path):
    import msgspec

    from api.models import ApiKey

    ScriptedNode(wire)
    body = msgspec.json.encode(HELLO)
    tenant = str((await ApiKey.objects.aget()).pk)
    later = (int(wire.time()[0]) + 300) * 1000
    wire.hset("gt:strikes", poison.fingerprint(tenant, "m", body), f"3 {later}")
    answer = await (await serve()).post(path, content=body, headers=key)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (422, "invalid_request_error")
    assert error["code"] == "request_held_off"
    assert answer.headers["x-should-retry"] == "false"
    assert 290 < int(answer.headers["retry-after"]) <= 300
    assert await Job.objects.acount() == 0


async def test_the_cluster_tells_of_its_breakers(serve, wire):
    _, secret = await sync_to_async(new_key)("boss", staff=True)
    node = ScriptedNode(wire)
    later = (int(wire.time()[0]) + 10) * 1000
    wire.hset(
        "gt:breakers", mapping={node.place: f"1 {later} 6 -", "f" * 16 + "/m": f"3 {later - 60_000} 9 -"}
    )
    status = (
        await (await serve()).get("/cluster/status", headers={"Authorization": f"Bearer {secret}"})
    ).json()
    found = sorted(status["breakers"], key=lambda b: b["node"])
    assert [(b["node"], b["name"], b["model"], b["state"], b["faults"]) for b in found] == [
        (node.id, "node-aaaa", "m", "open", 6),
        ("f" * 16, None, "m", "half_open", 9),
    ]
    assert found[0]["probe_at"] == later / 1000
