"""Which request an answer and a log line belong to: both doors, every path."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from gputorrent import logs, tracing
from gputorrent.access import Sparing, Traced
from jobs.models import Job, JobState
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode, until
from worker_agent.contract import Outcome

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
make = sync_to_async(new_key)


@pytest.fixture
async def key(ledger) -> dict[str, str]:
    """The headers of a caller with a good key."""
    return await caller("ann lee")


def lines(caplog) -> list[str]:
    """The access lines as the log has them."""
    form = logs.Lines()
    return [form.format(record) for record in caplog.records if record.name == "gputorrent.access"]


async def test_an_answer_has_the_jobs_id_or_the_callers(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    for given in ("", "my.request_1-A"):
        headers = {**key, "x-request-id": given} if given else key
        asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=headers))
        work = await node.take()
        node.done(work)
        answer = await asking
        assert answer.headers.get_list("x-request-id") == [given or work.job]
        assert answer.headers["x-job-id"] == work.job


async def test_a_stream_has_the_ids_too_and_its_error_event_names_the_request(door, serve, key, wire):
    node = ScriptedNode(wire)
    client = await serve()
    headers = {**key, "x-request-id": "mine"}
    asking = asyncio.create_task(client.post(CHAT, json={**HELLO, "stream": True}, headers=headers))
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    node.fail(work, Outcome.ENGINE_DIED, 1, "the engine has died")
    answer = await asking
    assert (answer.headers["x-request-id"], answer.headers["x-job-id"]) == ("mine", work.job)
    assert answer.content.count(b"the engine has died (request id mine)") == 1


@pytest.mark.parametrize("given", ["a b", "x" * 65, "ü", "a\tb", "a;b", '"', ""])
async def test_an_id_that_is_not_well_formed_is_replaced(door, serve, given):
    raw = [(b"x-request-id", given.encode("latin-1"))]
    answer = await (await serve()).post(CHAT, json=HELLO, headers=raw)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/nothing", "/jobs/1", "/workers"])
async def test_every_path_has_an_id(serve, path):
    client = await serve()
    first, second = [(await client.get(path)).headers["x-request-id"] for _ in range(2)]
    assert first != second
    assert (await client.get(path, headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"


async def test_a_job_that_ends_without_a_node_can_be_looked_up_by_the_id_of_its_refusal(
    door, serve, key, wire, settings
):
    settings.QUEUE_SECONDS = 0.2
    node = ScriptedNode(wire)
    client = await serve()
    holding = asyncio.create_task(client.post(CHAT, json=HELLO, headers=key))
    work = await node.take()
    answer = await client.post(CHAT, json=HELLO, headers=key)
    assert answer.json()["error"]["code"] == "queue_timeout"
    job = answer.headers["x-job-id"]
    assert answer.headers["x-request-id"] == job
    assert answer.json()["error"]["message"].endswith(f"(request id {job})")
    node.done(work)
    await holding
    async with asyncio.timeout(10):
        while True:
            if await Job.objects.filter(pk=job, state=JobState.EXPIRED).aexists():
                break
            await asyncio.sleep(0.02)


# -- the access log ------------------------------------------------------------------------------------


async def test_a_line_says_who_asked_for_what_and_nothing_secret(door, serve, key, wire, settings, caplog):
    settings.ACCESS_LOG = "all"
    node = ScriptedNode(wire)
    client = await serve()
    with caplog.at_level("INFO"):
        asking = asyncio.create_task(client.post(CHAT + "?token=secret", json=HELLO, headers=key))
        work = await node.take()
        node.done(work)
        await asking
        await client.get("/v1/models/a%20b?key=secret", headers={"x-request-id": "mine"})
        await until(
            lambda: len(lines(caplog)) == 2
        )  # a real server sends the answer before its line is written
    good, bad = lines(caplog)
    assert re.search(
        rf" INFO gputorrent\.access request method=POST path={CHAT} status=200 ms=[0-9.]+ request={work.job} "
        rf'job={work.job} key="ann lee"$',
        good,
    )
    assert re.search(r" path=/v1/models/a%20b status=401 ms=[0-9.]+ request=mine$", bad)
    everything = caplog.text + "".join(map(str, (record.__dict__ for record in caplog.records)))
    for secret in ("secret", "hello", key["Authorization"].split()[1]):
        assert secret not in everything


async def test_by_default_what_goes_well_and_is_known_otherwise_has_no_line(door, serve, key, wire, caplog):
    node = ScriptedNode(wire)
    client = await serve()
    with caplog.at_level("INFO"):
        asking = asyncio.create_task(client.post(CHAT, json=HELLO, headers=key))
        node.done(await node.take())
        await asking
        await client.get("/healthz")
        assert lines(caplog) == []
        await client.get("/v1/models", headers=key)
        await until(lambda: len(lines(caplog)) == 1)  # a line may be written after its answer was sent
        await client.post(CHAT, content=b"{", headers=key)
        await until(lambda: len(lines(caplog)) == 2)
    assert [line.split(" path=")[1].split(" ms=")[0] for line in lines(caplog)] == [
        "/v1/models status=200",
        f"{CHAT} status=400",
    ]


async def test_the_access_log_can_be_off(serve, settings, caplog):
    settings.ACCESS_LOG = "off"
    client = await serve()
    with caplog.at_level("INFO"):
        await client.get("/v1/models")
    assert lines(caplog) == []


async def test_of_strangers_there_are_a_few_lines_a_second_and_a_count_of_the_rest(settings, caplog):
    now = [1000.0]

    async def refuses(scope, receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing():
        return {}

    async def ignored(message):
        pass

    traced = Traced(refuses, Sparing(5, lambda: now[0]))

    async def knock(times):
        for _ in range(times):
            await traced({"method": "POST", "path": CHAT, "headers": []}, nothing, ignored)

    with caplog.at_level("INFO"):
        await knock(12)
        now[0] += 0.99
        await knock(1)
        assert [line.count("unlogged") for line in lines(caplog)] == [0] * 5
        now[0] += 0.01
        await knock(2)
        told = [re.findall(r" unlogged=(\d+)", line) for line in lines(caplog)]
        assert told == [[]] * 5 + [["8"], []]
        settings.ACCESS_LOG = "all"
        await knock(9)
    assert len(lines(caplog)) == 5 + 2 + 9


async def test_strangers_share_an_answer_and_no_id(door, serve, wire):
    client = await serve()
    wrong = [{}, {"Authorization": "x"}, {"Authorization": "Bearer x"}] * 3
    answers = [await client.post(CHAT, json=HELLO, headers=headers) for headers in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 3
    ids = [answer.headers.get_list("x-request-id") for answer in answers]
    assert len({id_ for given in ids for id_ in given}) == len(answers) == sum(map(len, ids))
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}


# -- how lines look ------------------------------------------------------------------------------------


def record(message: str, *args, **how) -> logging.LogRecord:
    made = logging.LogRecord("jobs.x", logging.WARNING, "x.py", 1, message, args, how.pop("exc", None))
    made.__dict__.update(how)
    return made


@pytest.fixture
def _outside():
    before = tracing._current.set(None)
    yield
    tracing._current.reset(before)  # what comes after this test in its process is outside as well


@pytest.mark.usefixtures("_outside")
def test_a_line_carries_the_request_it_is_about():
    assert (
        logs.Lines()
        .format(record("slot given back node=%s", "n"))
        .endswith("Z WARNING jobs.x slot given back node=n")
    )
    tracing.begin([(b"x-request-id", b"mine")])
    assert logs.Lines().format(record("x")).endswith(" WARNING jobs.x x request=mine")
    line = json.loads(logs.Objects().format(record("x", fields={"status": 200, "key": "ann"})))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "jobs.x",
        "message": "x",
        "request": "mine",
        "status": 200,
        "key": "ann",
    }


def test_what_came_from_outside_stays_within_its_line_and_its_pair():
    line = logs.Lines().format(record("a\nb\r%s", "c\n", fields={"key": 'ann status="200\n', "e": ""}))
    assert "\n" not in line
    assert "\r" not in line
    assert r'key="ann status=\"200\n"' in line


def test_a_traceback_follows():
    try:
        raise ValueError("why")
    except ValueError as e:
        exc = (ValueError, e, e.__traceback__)
    assert logs.Lines().format(record("x", exc=exc)).endswith("ValueError: why")
    assert "ValueError: why" in json.loads(logs.Objects().format(record("x", exc=exc)))["traceback"]
