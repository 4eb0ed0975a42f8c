"""What keys have used: counted once, whatever the end, and told to whoever may know."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import io
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from api import usage
from api.authentication import new_key
from api.models import ApiKey, Usage
from jobs import asynchronous
from jobs.accounting import Entry, Spent
from jobs.interactive import InteractiveJob, new_job_id
from jobs.lifecycle import Move, write_behind
from jobs.models import Attempt, Job
from jobs.rows import AttemptRow, JobRow
from tests.jobs.desk import Asking, Desk, request
from tests.jobs.scripted import ScriptedNode, done, until
from tests.jobs.written import attempt_row
from worker_agent.contract import Done, Failed, Outcome

TODAY = datetime.datetime.now(datetime.UTC).date
CHAT = "/v1/chat/completions"


@pytest.fixture
async def ann(ledger) -> int:
    row, _ = await sync_to_async(new_key)("ann")
    return row.pk


async def used(desk: Desk, key: int) -> dict[str, Any]:
    """The one row of a key, once all that was noted is written."""
    await desk.settled()
    await desk.dispatcher.recorder.flush()
    row = await Usage.objects.aget(key_id=key)
    assert (row.model, row.day) == ("m", TODAY())
    return {name: getattr(row, name) for name in usage.COUNTS}


def known(caller: Asking) -> InteractiveJob:
    assert caller.job
    return caller.job


def tokens(of: dict[str, Any]) -> tuple[int, int, int]:
    return of["prompt_tokens"], of["completion_tokens"], of["estimated_tokens"]


def counts(of: dict[str, Any]) -> tuple[int, int, int]:
    return of["requests"], of["errors"], of["cancelled"]


# -- however it ends -----------------------------------------------------------------------------------


async def test_a_whole_answer_counts_as_the_engine_counted(desk: Desk, wire, ann):
    node = ScriptedNode(wire)
    await desk.refresh()
    for _ in range(2):
        caller = desk.ask(key=ann, stream=False)
        work = await node.take()
        await desk.heard()
        node.done(work)
        await caller.first()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((2, 0, 0), (6, 14, 0))
    assert row["gpu_seconds"] > 0


async def test_a_stream_counts_as_the_engine_counted(desk: Desk, wire, ann):
    node = ScriptedNode(wire)
    await desk.refresh()
    caller = desk.ask(key=ann)
    work = await node.take()
    node.chunk(work, 0, b"data: {}\n\n")
    await caller.first()
    node.done(work, 1)
    await caller.rest()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((1, 0, 0), (3, 7, 0))


@pytest.mark.parametrize(("told", "answer"), [(0, 3), (5, 5)])
async def test_a_cancelled_stream_counts_what_was_generated(desk: Desk, wire, ann, told, answer):
    node = ScriptedNode(wire)
    await desk.refresh()
    caller = desk.ask(key=ann, body=b"x" * 40)
    work = await node.take()
    node.chunk(work, 0, b"data: {}\n\ndata: {}\n\n")
    await caller.first()
    job = known(caller)
    desk.dispatcher.abandon(job)
    await used(desk, ann)  # written while the node is still at it
    node.chunk(work, 1, b"data: {}\n\n")
    node.reply(Failed(work.job, 1, work.lease, 2, Outcome.CANCELLED, "", tokens=told), to=work)
    await until(lambda: job.current.outcome)
    await desk.look()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((1, 0, 1), (11, answer, 11 + answer))
    assert row["gpu_seconds"] > 0


async def test_a_cancelled_whole_answer_counts_its_prompt(desk: Desk, wire, ann):
    node = ScriptedNode(wire)
    await desk.refresh()
    caller = desk.ask(key=ann, stream=False, body=b"x" * 40)
    work = await node.take()
    await caller.leave()
    node.fail(work, Outcome.CANCELLED)
    await until(lambda: known(caller).current.outcome)
    await desk.look()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((1, 0, 1), (11, 0, 11))


async def test_a_node_that_fails_costs_no_tokens_but_its_time(desk: Desk, wire, ann):
    node, other = ScriptedNode(wire), ScriptedNode(wire, "b" * 16)
    await desk.refresh()
    caller = desk.ask(key=ann, stream=False)
    ran, work = await until(lambda: next(((n, w) for n in (node, other) for w in n.inbox()), None))
    next_ = other if ran is node else node
    ran.fail(work, Outcome.ENGINE_DIED)
    next_.done(await next_.take())
    await caller.first()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((1, 0, 0), (3, 7, 0))


async def test_a_failed_request_is_an_error(desk: Desk, wire, ann):
    node = ScriptedNode(wire)
    await desk.refresh()
    caller = desk.ask(key=ann, stream=False)
    node.fail(await node.take(), Outcome.TOTAL_TIMEOUT)
    with contextlib.suppress(Exception):
        await caller.first()
    row = await used(desk, ann)
    assert (counts(row), tokens(row)) == ((1, 1, 0), (0, 0, 0))


async def test_absurd_figures_of_a_node_do_not_stop_the_ledger(desk: Desk, wire, ann):
    node = ScriptedNode(wire)
    await desk.refresh()
    for figure in (-5, 1 << 62):
        caller = desk.ask(key=ann)
        work = await node.take()
        node.chunk(work, 0, b"data: {}\n\n")
        await caller.first()
        node.reply(Failed(work.job, 1, work.lease, 1, Outcome.ENGINE_DIED, "", tokens=figure), to=work)
        with contextlib.suppress(Exception):
            await caller.rest()
    row = await used(desk, ann)
    assert (counts(row)[0], desk.dispatcher.recorder.behind) == (2, 0)


# -- once ----------------------------------------------------------------------------------------------


def ended(key: int) -> tuple[list[JobRow], list[AttemptRow], dict]:
    job = InteractiveJob(new_job_id(), request(key=key), 100)
    job.claim()
    job.on_placed("n1")
    job.on_reply(Done(job.id, 1, job.lease, 0, 200, b"", "", done_usage(), 0.0, 0.0))
    job.move(Move.COMPLETE)
    row, attempts = job.record()
    return [row], attempts, {(job.id, 1): job.current.spent}


def done_usage() -> Any:
    from worker_agent.contract import Usage as Told

    return Told(3, 7)


@pytest.mark.django_db
def test_a_batch_that_is_written_twice_counts_once():
    row, _ = new_key("ann")
    batch = ended(row.pk)
    for _ in range(3):
        write_behind(*batch)
    assert (Usage.objects.get().requests, Usage.objects.get().completion_tokens) == (1, 7)


@pytest.mark.django_db(transaction=True)
def test_a_batch_that_fails_after_it_was_counted_counts_when_it_is_written():
    row, _ = new_key("ann")
    batch = ended(row.pk)
    with pytest.raises(DatabaseError), transaction.atomic():  # noqa: PT012 - the block is what fails
        write_behind(*batch)
        with connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
    assert not Usage.objects.exists()
    write_behind(*batch)
    assert Usage.objects.get().requests == 1


@pytest.mark.django_db
def test_an_attempt_that_closes_after_its_job_ended_is_added():
    row, _ = new_key("ann")
    jobs, attempts, spent = ended(row.pk)
    still_open = attempt_row(jobs[0].id)
    write_behind(jobs, [still_open])
    assert (Usage.objects.get().requests, Usage.objects.get().prompt_tokens) == (1, 0)
    write_behind(jobs, attempts, spent)
    write_behind(jobs, attempts, spent)
    assert (Usage.objects.get().requests, Usage.objects.get().prompt_tokens) == (1, 3)


@pytest.mark.django_db
def test_entries_are_added_up_by_key_model_and_day():
    first, second = new_key("ann")[0], new_key("bob")[0]
    at = datetime.datetime(2026, 3, 1, 23, 59, tzinfo=datetime.UTC)
    west = at.astimezone(datetime.timezone(datetime.timedelta(hours=-8)))
    entries = [
        Entry(first.pk, "m", at, requests=1, spent=Spent(1, 2)),
        Entry(first.pk, "m", west, errors=1, spent=Spent(10, 20, estimated=True), node_seconds=1.5),
        Entry(first.pk, "n", at, requests=1),
        Entry(second.pk, "m", at, requests=1),
        Entry(first.pk, "m", at + datetime.timedelta(minutes=1), requests=1),
    ]
    usage.keep(entries, "default")
    usage.keep(entries, "default")
    assert Usage.objects.count() == 4
    row = Usage.objects.get(key=first, model="m", day="2026-03-01")
    assert [getattr(row, c) for c in usage.COUNTS] == [2, 2, 0, 22, 44, 60, 3.0]


async def test_an_asynchronous_job_counts_once(ledger, wire, ann):
    wire.set("gt:alive", "1")
    job = await sync_to_async(asynchronous.submit)(request(key=ann, stream=False))

    def run() -> None:
        attempt = asynchronous._claim(job)
        assert attempt
        node_id = "a" * 16
        from nodes.models import Node

        Node.objects.create(id=node_id, name="one", secret_hash="")
        assert asynchronous._placed(job.id, 1, node_id)
        for _ in range(2):
            fresh = Job.objects.get(pk=job.id)
            row = Attempt.objects.get(job=fresh)
            lease = bytes.fromhex(row.lease)
            from tests.jobs.scripted import work

            said = done(work(job.id, 1, lease=lease))
            asynchronous._take_answer(fresh, row, said)

    await sync_to_async(run)()
    row = await Usage.objects.aget(key_id=ann)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 3, 7)
    assert row.gpu_seconds > 0


# -- who may know --------------------------------------------------------------------------------------


def fill(key: ApiKey, model: str, day: str, n: int) -> None:
    Usage.objects.create(
        key=key,
        model=model,
        day=day,
        requests=n,
        prompt_tokens=10 * n,
        completion_tokens=n,
        gpu_seconds=n / 2,
    )


@pytest.fixture
async def callers(ledger) -> dict[str, tuple[ApiKey, dict[str, str]]]:
    def make() -> dict[str, tuple[ApiKey, dict[str, str]]]:
        found = {}
        for name in ("ann", "=bob", "boss"):
            row, secret = new_key(name, staff=name == "boss")
            found[name] = row, {"Authorization": f"Bearer {secret}"}
        for model, day, n in (("m", "2026-03-01", 1), ("m", "2026-03-02", 2), ("n", "2026-03-02", 4)):
            fill(found["ann"][0], model, day, n)
        fill(found["=bob"][0], "m", "2026-03-01", 8)
        return found

    return await sync_to_async(make)()


MARCH = "/v1/usage?start=2026-03-01&end=2026-03-31"


async def test_a_key_sees_its_own_by_day_and_model(serve, callers):
    client = await serve()
    _, ann = callers["ann"]
    told = (await client.get(MARCH, headers=ann)).json()
    assert [(r["day"], r["model"], r["requests"]) for r in told["data"]] == [
        ("2026-03-01", "m", 1), ("2026-03-02", "m", 2), ("2026-03-02", "n", 4),
    ]  # fmt: skip
    assert told["total"]["total_tokens"] == 77
    assert told["total"]["gpu_seconds"] == 3.5
    by_model = (await client.get(f"{MARCH}&group_by=model", headers=ann)).json()["data"]
    assert [(r["model"], r["requests"]) for r in by_model] == [("m", 3), ("n", 4)]
    one_day = (await client.get("/v1/usage?start=2026-03-01&end=2026-03-01", headers=ann)).json()
    assert one_day["total"]["requests"] == 1
    assert (await client.get("/v1/usage", headers=ann)).json()["data"] == []


async def test_others_are_for_staff(serve, callers):
    client = await serve()
    (row, ann), (_, boss) = callers["ann"], callers["boss"]
    for key in ("all", str(callers["=bob"][0].pk)):
        answer = await client.get(f"{MARCH}&key={key}", headers=ann)
        assert answer.status_code == 403
    assert (await client.get(f"{MARCH}&key={row.pk}", headers=ann)).status_code == 200
    assert (await client.get(MARCH, headers=boss)).json()["total"]["requests"] == 0
    told = (await client.get(f"{MARCH}&key=all&group_by=key", headers=boss)).json()
    assert [(r["key"]["name"], r["requests"]) for r in told["data"]] == [("ann", 7), ("=bob", 8)]
    told = (await client.get(f"{MARCH}&key={row.pk}", headers=boss)).json()
    assert told["total"]["requests"] == 7


async def test_it_comes_as_csv_that_no_spreadsheet_runs(serve, callers):
    client = await serve()
    _, boss = callers["boss"]
    answer = await client.get(f"{MARCH}&key=all&group_by=key,day&format=csv", headers=boss)
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(r["day"], r["key_name"], r["total_tokens"]) for r in rows] == [
        ("2026-03-01", "ann", "11"), ("2026-03-02", "ann", "66"), ("2026-03-01", "'=bob", "88"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start=yesterday", "start"), ("end=2026-02-30", "end"), ("start=2026-03-02&end=2026-03-01", "start"),
        ("start=2020-01-01&end=2026-01-01", "start"), ("end=0001-01-01", None), ("format=xml", "format"),
        ("group_by=owner", "group_by"), ("group_by=", "group_by"), ("key=x", "key"),
        ("key=" + "9" * 20, "key"),
    ],
)  # fmt: skip
async def test_mistakes_name_the_parameter(serve, callers, query, param):
    client = await serve()
    answer = await client.get(f"/v1/usage?{query}", headers=callers["boss"][1])
    assert answer.status_code == (400 if param else 200)
    if param:
        assert answer.json()["error"]["param"] == param


async def test_without_a_key_there_is_nothing_to_see(serve, callers):
    client = await serve()
    assert (await client.get("/v1/usage")).status_code == 401
    assert (await client.post("/v1/usage", headers=callers["ann"][1])).status_code == 405


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


@pytest.mark.django_db
def test_the_command_prints_a_table_and_csv():
    fill(new_key("ann, the first")[0], "m", "2026-03-01", 3)
    days = ("--start", "2026-03-01", "--end", "2026-03-01")
    (row,) = csv.DictReader(io.StringIO(run("usage", "--csv", *days)))
    assert (row["day"], row["key_name"], row["requests"]) == ("2026-03-01", "ann, the first", "3")
    table = run("usage", *days, "--group-by", "model").splitlines()
    assert table[0].split()[:2] == ["model", "requests"]
    assert table[1].split()[:2] == ["m", "3"]
    with pytest.raises(CommandError):
        run("usage", "--group-by", "owner")


@pytest.mark.django_db
def test_budgets_read_the_day_and_the_month():
    row, _ = new_key("ann")
    idle, _ = new_key("idle")
    today = timezone.now().astimezone(datetime.UTC).date()
    fill(row, "m", today.isoformat(), 1)
    fill(row, "n", today.isoformat(), 2)
    fill(row, "m", (today.replace(day=1) - datetime.timedelta(days=1)).isoformat(), 1000)
    expected = 33
    if today.day > 1:
        fill(row, "m", today.replace(day=1).isoformat(), 10)
        expected += 110
    found = usage.spent([row.pk, idle.pk])
    assert (found[row.pk].day_tokens, found[row.pk].month_tokens) == (33, expected)
    assert (found[idle.pk].day_tokens, found[idle.pk].month_tokens) == (0, 0)


def test_the_admin_shows_totals_of_what_is_filtered_and_exports_it(admin_client, wire):
    row, _ = new_key("ann")
    for model, n in (("m", 3), ("n", 4000)):
        fill(row, model, "2026-03-01", n)
    page = reverse("admin:api_usage_changelist")
    assert "4,003 requests" in admin_client.get(page).content.decode()
    assert "3 requests" in admin_client.get(page, {"model": "m"}).content.decode()
    chosen = [u.pk for u in Usage.objects.filter(model="n")]
    answer = admin_client.post(page, {"action": "export", "_selected_action": chosen})
    (exported,) = csv.DictReader(io.StringIO(answer.content.decode()))
    assert (exported["model"], exported["requests"]) == ("n", "4000")


async def test_budgets_are_known_to_every_process_after_redis_was_lost(serve, wire):
    row, secret = await sync_to_async(new_key)("ann", tokens_per_day=1000)
    await sync_to_async(fill)(row, "m", TODAY().isoformat(), 80)
    node = ScriptedNode(wire)
    client = await serve()
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200}
    answer = await client.post(CHAT, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    asking = asyncio.create_task(client.post(CHAT, json={**body, "max_tokens": 50}, headers=headers))
    node.done(await node.take())
    assert (await asking).status_code == 200
