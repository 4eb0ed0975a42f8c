"""``Idempotency-Key`` on ``POST /jobs``: one job, however often it is asked for."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api.authentication import new_key
from jobs import asynchronous, idempotency, retention
from jobs.interactive import new_job_id
from jobs.models import Job, JobState, Submission
from tests.jobs.deferred import ago
from tests.jobs.desk import request
from tests.jobs.scripted import ScriptedNode, until

BODY = {"model": "m", "prompt": "hello"}
make = sync_to_async(new_key)


async def caller(name: str = "ann", **how) -> dict[str, str]:
    _, secret = await make(name, **how)
    return {"Authorization": f"Bearer {secret}", "Idempotency-Key": "order 1/7"}


async def test_the_same_request_again_gets_the_same_job(serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    first = await client.post("/jobs", json=BODY, headers=ann)
    await Job.objects.filter(pk=first.json()["id"]).aupdate(request=None, state=JobState.COMPLETED)
    node.die()
    again = await client.post("/jobs", json=BODY, headers=ann)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == {**first.json(), "state": "completed", "status": "completed"}
    assert again.headers["location"] == first.headers["location"]
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert await Job.objects.acount() == 1
    other = await client.post("/jobs", json=BODY, headers={**ann, "Idempotency-Key": "order 1/8"})
    assert other.json()["id"] != first.json()["id"]


async def test_another_request_with_the_key_is_refused_for_good(serve, wire):
    ScriptedNode(wire)
    ann = await caller(requests_per_minute=10, concurrency=2)
    client = await serve()
    assert (await client.post("/jobs", json=BODY, headers=ann)).status_code == 202
    for body in (
        {**BODY, "prompt": "bye"},
        {"url": "/v1/embeddings", "body": {"model": "m", "input": "hello"}},
        {"url": "/v1/completions", "body": {**BODY, "max_tokens": 5}},
    ):
        answer = await client.post("/jobs", json=body, headers=ann)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "idempotency_key_reused")
        assert error["param"] == "idempotency-key"
    wrapped = {"url": "/v1/completions", "body": BODY}
    same = await client.post("/jobs", content=json.dumps(wrapped, separators=(",", ":")), headers=_json(ann))
    assert same.status_code == 202  # as /v1 would have had it


def _json(headers: dict[str, str]) -> dict[str, str]:
    return {**headers, "Content-Type": "application/json"}


async def test_keys_of_two_callers_do_not_meet(serve, wire):
    ScriptedNode(wire)
    ann, bob = await caller("ann"), await caller("bob")
    client = await serve()
    made = [await client.post("/jobs", json=BODY, headers=who) for who in (ann, bob)]
    assert [m.status_code for m in made] == [202, 202]
    assert made[0].json()["id"] != made[1].json()["id"]


async def test_of_many_at_once_one_is_made_and_counted(serve, wire):
    ScriptedNode(wire)
    ann = await caller(requests_per_minute=50)
    clients = [await serve() for _ in range(2)]
    asked = [clients[i % 2].post("/jobs", json=BODY, headers=ann) for i in range(12)]
    made = await asyncio.gather(*asked)
    assert {m.status_code for m in made} == {202}
    assert len({m.json()["id"] for m in made}) == 1
    assert sum("idempotent-replayed" in m.headers for m in made) == 11
    assert await Job.objects.acount() == await Submission.objects.acount() == 1
    (window,) = wire.keys("gt:limits:window:*")
    await until(lambda: int(wire.hget(window, "r")) == 1)


async def test_what_was_refused_has_not_used_the_key(serve, wire):
    ann = await caller()
    client = await serve()
    assert (await client.post("/jobs", json=BODY, headers=ann)).status_code == 404
    ScriptedNode(wire)
    async with asyncio.timeout(10):
        while True:
            answer = await client.post("/jobs", json={**BODY, "n": 2}, headers=ann)
            if answer.status_code != 404:
                break
            await asyncio.sleep(0.02)
    assert answer.status_code == 202


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "caf\u00e9", "a\tb"])
async def test_a_key_that_cannot_be_one_is_refused(serve, wire, key):
    ScriptedNode(wire)
    ann = await caller()
    client = await serve()
    answer = await client.post("/jobs", json=BODY, headers={**ann, "Idempotency-Key": key.encode("latin-1")})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_value")
    assert error["param"] == "idempotency-key"


@pytest.mark.django_db(transaction=True)
def test_a_key_stands_for_its_job_for_a_day(settings):
    settings.IDEMPOTENCY_SECONDS = 86400
    mark = idempotency.mark(request(stream=False), "k")
    job, new = idempotency.accept(request(stream=False), mark, new_job_id())
    assert new
    Submission.objects.update(created_at=ago(hours=23))
    assert idempotency.accept(request(stream=False), mark, new_job_id()) == (job, False)
    Submission.objects.update(created_at=ago(hours=25))
    assert idempotency.earlier(mark) is None
    later, new = idempotency.accept(request(stream=False), mark, new_job_id())
    assert new
    assert later != job
    Submission.objects.update(created_at=ago(hours=25))
    retention.tidy()
    assert not Submission.objects.exists()
    assert Job.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_job_and_its_key_come_and_go_together(settings):
    wanted = request(stream=False)
    mark = idempotency.mark(wanted, "k")
    with pytest.raises(asynchronous.TooLate):
        idempotency.accept(wanted, mark, new_job_id(), give_up_at=0.0)
    assert not Submission.objects.exists()
    job, _ = idempotency.accept(wanted, mark, new_job_id())
    Job.objects.filter(pk=job.pk).update(state=JobState.COMPLETED, finished_at=timezone.now())
    retention.delete_finished(timezone.now())
    assert not Submission.objects.exists()
    assert idempotency.accept(wanted, mark, new_job_id())[1]


async def test_under_v1_the_header_changes_nothing(door, serve, wire):
    node, ann = ScriptedNode(wire), await caller()
    client = await serve()
    ids = []
    for _ in range(2):
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY, headers=ann))
        work = await node.take()
        ids.append(work.job)
        node.done(work)
        assert (await asking).status_code == 200
    assert ids[0] != ids[1]
