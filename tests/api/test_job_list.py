"""``GET /jobs``: whose jobs, which of them, in what order, and at what cost."""

from __future__ import annotations

import datetime

import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api import records
from api.authentication import new_key
from api.records import Reader, Wanted
from jobs.interactive import new_job_id
from jobs.models import Attempt, Job, JobState
from tests.nodes.agents import enrol

make = sync_to_async(new_key)


async def caller(name: str, **how):
    row, secret = await make(name, **how)
    return row, {"Authorization": f"Bearer {secret}"}


async def a_job(key, **columns) -> str:
    row = await Job.objects.acreate(id=new_job_id(), **{"model": "m", "key": key, **columns})
    return row.id


async def test_pages_from_newest_to_oldest(serve):
    ann, headers = await caller("ann")
    ids = sorted([await a_job(ann) for _ in range(5)], reverse=True)
    client = await serve()
    seen, after, sizes = [], None, []
    while True:
        query = {"limit": 2} | ({"after": after} if after else {})
        page = (await client.get("/jobs", params=query, headers=headers)).json()
        seen += [job["id"] for job in page["data"]]
        sizes.append(len(page["data"]))
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        after = "chatcmpl-" + page["last_id"]
    assert (seen, sizes) == (ids, [2, 2, 1])
    nothing = (await client.get("/jobs", params={"after": ids[-1]}, headers=headers)).json()
    assert nothing == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_a_key_sees_its_own_and_staff_sees_all(serve):
    (ann, anns), (bob, bobs) = await caller("ann"), await caller("bob")
    boss, bosses = await caller("boss", staff=True)
    ids = {"ann": await a_job(ann), "bob": await a_job(bob), "boss": await a_job(boss)}
    client = await serve()

    async def seen(headers, **query) -> set[str]:
        page = (await client.get("/jobs", params=query, headers=headers)).json()
        return {job["id"] for job in page["data"]}

    assert await seen(anns) == {ids["ann"]}
    assert await seen(bobs) == {ids["bob"]}
    assert await seen(bosses) == set(ids.values())
    assert await seen(bosses, key=str(ann.pk)) == {ids["ann"]}
    assert await seen(bosses, key="bob") == {ids["bob"]}
    for name in ("key", "node"):
        refused = await client.get("/jobs", params={name: "1"}, headers=anns)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert (await client.get("/jobs")).status_code == 401
    (job,) = (await client.get("/jobs", headers=anns)).json()["data"]
    assert "key" not in job
    (job,) = (await client.get("/jobs", params={"key": "ann"}, headers=bosses)).json()["data"]
    assert job["key"] == {"id": ann.pk, "name": "ann"}


async def test_every_filter(serve):
    boss, headers = await caller("boss", staff=True)
    node, _ = await sync_to_async(enrol)()
    old = timezone.now() - datetime.timedelta(hours=1)
    await a_job(boss)
    odd = {
        "state": await a_job(boss, state=JobState.FAILED),
        "model": await a_job(boss, model="org/other model"),
        "asynchronous": await a_job(boss, asynchronous=True),
        "created_before": await a_job(boss, created_at=old),
        "node": await a_job(boss, node=node),
    }
    client = await serve()
    middle = str(old.timestamp() + 60)
    for query, found in [
        ({"state": "failed"}, {odd["state"]}),
        ({"state": "expired"}, set()),
        ({"model": "org/other model"}, {odd["model"]}),
        ({"asynchronous": "true"}, {odd["asynchronous"]}),
        ({"created_before": middle}, {odd["created_before"]}),
        ({"created_before": middle, "state": "failed"}, set()),
        ({"node": node.pk}, {odd["node"]}),
        ({"node": "box"}, {odd["node"]}),
        ({"key": "9" * 40}, set()),
    ]:
        page = (await client.get("/jobs", params=query, headers=headers)).json()
        assert {job["id"] for job in page["data"]} == found, query
    for query, missing in [
        ({"asynchronous": "false"}, "asynchronous"),
        ({"created_after": middle}, "created_before"),
    ]:
        page = (await client.get("/jobs", params=query, headers=headers)).json()
        assert len(page["data"]) == 5
        assert odd[missing] not in {job["id"] for job in page["data"]}


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "invalid_value"),
        ("limit=101", "limit", "invalid_value"),
        ("limit=x", "limit", "invalid_value"),
        ("limit=-1", "limit", "invalid_value"),
        ("limit=", "limit", "invalid_value"),
        ("limit=%C2%B2", "limit", "invalid_value"),
        ("limit=1&limit=2", "limit", "invalid_value"),
        ("after=x", "after", "invalid_value"),
        ("state=done", "state", "invalid_value"),
        ("asynchronous=1", "asynchronous", "invalid_value"),
        ("created_after=yesterday", "created_after", "invalid_value"),
        ("created_before=nan", "created_before", "invalid_value"),
        ("created_before=1e300", "created_before", "invalid_value"),
        ("model=", "model", "invalid_value"),
        ("model=%00", "model", "invalid_value"),
        ("page=2", "page", "unknown_parameter"),
    ],
)
async def test_a_bad_parameter_is_named(serve, query, param, code):
    _, headers = await caller("ann")
    answer = await (await serve()).get(f"/jobs?{query}", headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.django_db
def test_a_page_costs_the_same_however_many_jobs_it_has():
    node, _ = enrol()
    ann, _ = new_key("ann")
    costs = []
    for many in (2, 20):
        for _ in range(many):
            job = Job.objects.create(
                id=new_job_id(), model="m", key=ann, node=node, request=b"x", result=b"{}"
            )
            Attempt.objects.create(job=job, number=1, node=node, lease="")
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page = records.page(Wanted(limit=100), Reader(ann.pk, staff=True))
        assert page["data"][0]["attempts"][0]["node"] == "box"
        costs.append(len(queries))
    assert costs[0] == costs[1]
