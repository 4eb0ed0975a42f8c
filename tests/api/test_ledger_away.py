"""With the database away or silent, callers are refused soon, and completions go on."""

from __future__ import annotations

import asyncio
import threading

import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from gputorrent import ledger
from tests.api.callers import caller
from tests.jobs.scripted import ScriptedNode
from tests.tables import rename

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
make = sync_to_async(new_key)


@pytest.fixture
async def headers(ledger):
    return await caller("boss", staff=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("GET", "/jobs"), ("GET", f"/jobs/{'a' * 32}"), ("DELETE", f"/jobs/{'a' * 32}"),
     ("GET", "/cluster/status")],
)  # fmt: skip
async def test_what_needs_the_ledger_is_refused(serve, wire, headers, method, path):
    ScriptedNode(wire)
    client = await serve()
    await rename("jobs_job", "jobs_job_away")
    try:
        body = HELLO if method == "POST" else None
        answer = await client.request(method, path, json=body, headers=headers)
    finally:
        await rename("jobs_job_away", "jobs_job")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "jobs_job" not in answer.text


async def test_a_job_that_was_not_taken_costs_its_key_nothing(serve, wire):
    ScriptedNode(wire)
    _, secret = await make("ann", requests_per_minute=9)
    client, ann = await serve(), {"Authorization": f"Bearer {secret}"}
    await rename("jobs_job", "jobs_job_away")
    try:
        assert (await client.post("/jobs", json=HELLO, headers=ann)).status_code == 503
    finally:
        await rename("jobs_job_away", "jobs_job")
    taken = await client.post("/jobs", json=HELLO, headers=ann)
    assert (taken.status_code, taken.headers["x-ratelimit-remaining-requests"]) == (202, "8")


async def test_completions_do_without_it(door, serve, wire, headers):
    node = ScriptedNode(wire)
    client = await serve()
    await rename("jobs_job", "jobs_job_away")
    try:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=HELLO, headers=headers))
        node.done(await node.take())
        answer = await asking
    finally:
        await rename("jobs_job_away", "jobs_job")
    assert answer.status_code == 200
    seen = await client.get(f"/jobs/{answer.headers['x-request-id']}", headers=headers)
    assert seen.json()["state"] == "completed"


async def test_a_silent_database_is_not_waited_for():
    answers = threading.Event()
    try:
        with pytest.raises(ledger.LedgerTimeout):
            await ledger.within(0.05, answers.wait)
        # Threads that hang are not those that the event loop needs for itself.
        assert await asyncio.wait_for(asyncio.to_thread(lambda: True), 5)
    finally:
        answers.set()


async def test_what_hangs_is_bounded():
    answers = threading.Event()
    try:
        hanging = [asyncio.create_task(ledger.within(5, answers.wait)) for _ in range(ledger._MOST_UNDER_WAY)]
        await asyncio.sleep(0.05)
        with pytest.raises(ledger.LedgerTimeout, match="too many"):
            await ledger.ask(lambda: True)
    finally:
        answers.set()
    await asyncio.gather(*hanging)
    assert await ledger.ask(lambda: True)
