"""Rows that are no models: what they lack has its default, and times are what Django writes."""

from __future__ import annotations

import pytest

from jobs import upsert
from jobs.interactive import InteractiveJob, Request, new_job_id
from jobs.lifecycle import Move, write_behind
from jobs.models import Job
from jobs.rows import JobRow
from jobs.upsert import Target

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


def test_many_rows_take_several_statements_and_all_are_told(django_assert_max_num_queries):
    rows = [ended() for _ in range(450)]
    target = Target(Job, ("id",), ("id",), lambda using: "")
    with django_assert_max_num_queries(3):
        told = upsert.write(target, rows, "default")
    assert sorted(told) == sorted((row.id,) for row in rows)
    assert upsert.write(target, [], "default") == []
