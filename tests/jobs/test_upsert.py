"""Rows that are no models: what they lack has its default, and times are what Django writes."""

from __future__ import annotations

import datetime

import pytest
from django.db import connection, transaction

from api.models import Usage
from jobs import lifecycle, upsert
from jobs.accounting import Spent
from jobs.interactive import InteractiveJob, Request, new_job_id
from jobs.lifecycle import Move, write_behind
from jobs.models import Attempt, Job, JobState
from jobs.rows import JobRow
from jobs.upsert import Target
from tests.jobs.written import attempt_row, job_row

pytestmark = pytest.mark.django_db


def ended() -> JobRow:
    job = InteractiveJob(new_job_id(), Request("/v1/completions", "m", b"{}", stream=True), 100, "w" * 16)
    job.claim()
    job.on_placed("n" * 16)
    job.move(Move.COMPLETE)
    row, _ = job.record()
    return row


@pytest.mark.parametrize("microsecond", [0, 1, 120_000, 999_999])
def test_a_row_reads_back_as_one_that_django_wrote(microsecond):
    row = ended()
    row.created_at = row.created_at.replace(microsecond=microsecond)
    write_behind([row], [])
    ours = Job.objects.get()
    known = {name: getattr(row, name) for name in row.__struct_fields__}
    assert {name: getattr(ours, name) for name in known} == known
    at = row.created_at
    assert list(Job.objects.filter(created_at=at)) == [ours]
    assert not Job.objects.filter(created_at__gt=at)
    assert not Job.objects.filter(created_at__lt=at)
    Job.objects.all().delete()
    Job(**known).save(force_insert=True)
    columns = [f.attname for f in Job._meta.concrete_fields]
    theirs = Job.objects.get()
    assert {c: getattr(ours, c) for c in columns} == {c: getattr(theirs, c) for c in columns}


TEXTS = [
    "",
    "plain",
    """'single' "double" `back` %s %(name)s %% ; -- \\ \\u0041 \\0 {}""",
    "\x01\x08\t\n\r\x1f\x7f",
    "Größe 東京 \U0001f680 \u2028 e\u0301",
    '{"a": [null, "NULL"]}',
    "2026-11-27T01:23:55Z",
    "y" * 5000,
]
MOMENTS = [
    datetime.datetime(2026, 11, 27, 1, 23, 55, microsecond, datetime.UTC)
    for microsecond in (0, 1, 100_000, 999_999)
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12].encode("unicode_escape").decode())
def test_every_text_comes_back_as_it_was(text):
    row, short = ended(), text[:300]
    row.why, row.error_message, row.model = short, short, short[:200]
    row.error_code = short[:60]
    attempt = attempt_row(row.id, outcome=short[:40], reason=short, lease="")
    write_behind([row], [attempt])
    ours, its = Job.objects.get(), Attempt.objects.get()
    assert (ours.why, ours.error_message, ours.model) == (row.why, row.error_message, row.model)
    assert (ours.error_code, its.outcome, its.reason) == (row.error_code, attempt.outcome, attempt.reason)


@pytest.mark.parametrize("absent", [True, False])
def test_nothing_is_not_the_same_as_empty(absent):
    row = job_row(
        key_id=None if absent else 0,
        node_id=None if absent else "",
        http_status=None if absent else 0,
        placed_at=None if absent else MOMENTS[0],
        error_code="",
        prompt_tokens=2**31 - 1,
        stream=absent,
    )
    write_behind([row], [attempt_row(row.id, node_id=row.node_id, placed_at=row.placed_at)])
    ours, its = Job.objects.get(), Attempt.objects.get()
    names = ("key_id", "node_id", "http_status", "placed_at", "error_code", "prompt_tokens", "stream")
    assert [getattr(ours, n) for n in names] == [getattr(row, n) for n in names]
    assert (its.node_id, its.placed_at) == (row.node_id, row.placed_at)
    assert (ours.asynchronous, ours.request, ours.result, ours.result_read_at) == (False, None, None, None)


@pytest.mark.parametrize("at", MOMENTS, ids=lambda at: f"{at.microsecond}us")
def test_times_lie_in_the_table_as_those_that_django_wrote(at):
    """To the letter: SQLite compares them as text."""
    ours = job_row(created_at=at, placed_at=at, first_token_at=at, finished_at=at)
    theirs = Job(id=new_job_id(), created_at=at, placed_at=at, first_token_at=at, finished_at=at)
    write_behind([ours], [])
    theirs.save(force_insert=True)
    with connection.cursor() as cursor:
        columns = "created_at, placed_at, first_token_at, finished_at"
        cursor.execute(f"SELECT {columns} FROM jobs_job")
        first, second = cursor.fetchall()
    assert first == second
    assert len(set(first)) == 1


def test_which_rows_were_taken_is_known_of_each_though_one_was_not():
    new, ended_before, older = job_row(), job_row(state=JobState.FAILED), job_row(version=5)
    write_behind([ended_before, older], [])
    target = Target(Job, ("id",), lifecycle._job_is_older)
    rows = [job_row(id=ended_before.id, version=9), new, job_row(id=older.id, version=5)]
    with transaction.atomic():
        try:
            with transaction.atomic():
                written = upsert.write(target, rows, "default")
        except upsert.NotAll:
            written = upsert.write(target, rows, "default", singly=True)
    assert list(written) == [new]


def test_a_batch_of_which_not_all_is_taken_counts_what_is():
    key = 7
    before, after = ended(), ended()
    before.key_id = after.key_id = key
    before.finished_at = after.finished_at = MOMENTS[0]
    write_behind([before], [])
    attempts = [
        attempt_row(row.id, outcome="done", placed_at=MOMENTS[0], finished_at=MOMENTS[0])
        for row in (before, after)
    ]
    spent = {(row.id, 1): Spent(2, 3) for row in (before, after)}
    write_behind([before, after], attempts, spent)
    write_behind([before, after], attempts, spent)
    used = Usage.objects.get()
    assert (used.key_id, used.requests, used.prompt_tokens, used.completion_tokens) == (key, 2, 4, 6)


def test_what_a_recorder_does_not_know_it_leaves_alone():
    row = job_row()
    write_behind([row], [])
    Job.objects.update(result=b"kept")
    write_behind([job_row(id=row.id, version=2, why="newer")], [])
    ours = Job.objects.get()
    assert (ours.why, bytes(ours.result or b"")) == ("newer", b"kept")


def test_many_rows_take_few_statements_and_all_are_told(django_assert_num_queries):
    rows = [ended() for _ in range(450)]
    target = Target(Job, ("id",), lambda using: "")
    pauses = []
    few = 15 if connection.vendor == "sqlite" else 1  # it pauses after each 32
    with django_assert_num_queries(few):
        told = upsert.write(target, rows, "default", pause=lambda: pauses.append(1))
    assert len(pauses) == (few if few > 1 else 0)
    assert sorted(row.id for row in told) == sorted(row.id for row in rows)
    assert Job.objects.count() == 450
    assert upsert.write(target, [], "default") == []
