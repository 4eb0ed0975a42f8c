from __future__ import annotations

import datetime
import itertools

import pytest
from django.utils import timezone

from jobs.interactive import new_job_id
from jobs.lifecycle import MOVES, Move, after, move, write_behind
from jobs.models import TERMINAL, Attempt, Job, JobState
from jobs.rows import JobRow
from tests.jobs.written import attempt_row, job_row

S = JobState
EXPECTED = {
    (Move.PLACE, S.PENDING): S.RUNNING,
    (Move.REQUEUE, S.RUNNING): S.PENDING,
    (Move.COMPLETE, S.RUNNING): S.COMPLETED,
    (Move.FAIL, S.PENDING): S.FAILED,
    (Move.FAIL, S.RUNNING): S.FAILED,
    (Move.CANCEL, S.PENDING): S.CANCELLED,
    (Move.CANCEL, S.RUNNING): S.CANCELLED,
    (Move.EXPIRE, S.PENDING): S.EXPIRED,
    (Move.EXPIRE, S.RUNNING): S.EXPIRED,
}
ALL = list(itertools.product(Move, JobState))
OPEN = [S.PENDING, S.RUNNING]


def row(**changes) -> Job:
    fields = {"id": new_job_id(), "path": "/v1/completions", "model": "m"}
    return Job(**{**fields, **changes})


def stored(job: Job | JobRow) -> Job:
    return Job.objects.get(pk=job.id)


@pytest.mark.parametrize(("how", "state"), ALL)
def test_a_move_leads_only_where_the_table_says(how, state):
    assert after(state, how) == EXPECTED.get((how, state))


def test_nothing_leads_out_of_a_terminal_state():
    assert {state for froms, _ in MOVES.values() for state in froms} & TERMINAL == set()
    assert set(OPEN) | TERMINAL == set(JobState)


@pytest.mark.django_db
@pytest.mark.parametrize(("how", "state"), ALL)
def test_a_move_in_the_ledger_follows_the_table(how, state):
    job = row(state=state)
    job.save()
    to = EXPECTED.get((how, state))
    assert move(job, how, why="because") is (to is not None)
    now = stored(job)
    assert (now.state, now.version, now.why) == ((to, 2, "because") if to else (state, 1, ""))
    assert (job.state, job.version, job.why) == (now.state, now.version, now.why)


@pytest.mark.django_db
def test_the_second_of_two_claimants_loses():
    row().save()
    first, second = Job.objects.get(), Job.objects.get()
    assert move(first, Move.PLACE, why="first")
    assert not move(second, Move.FAIL, why="second")
    now = stored(first)
    assert (now.state, now.version, now.why) == (S.RUNNING, 2, "first")
    assert second.state == S.PENDING


@pytest.mark.django_db
@pytest.mark.parametrize("stale", [{"attempt_count": 1}, {"version": 7}, {"state": S.PENDING}])
def test_a_word_from_an_earlier_attempt_or_version_changes_nothing(stale):
    job = row(state=S.RUNNING, attempt_count=2, version=8)
    job.save()
    late = stored(job)
    for name, value in stale.items():
        setattr(late, name, value)
    assert not move(late, Move.FAIL)
    assert stored(job).state == S.RUNNING


# -- rows written behind -------------------------------------------------------------------------------


@pytest.mark.django_db
class TestWriteBehind:
    def test_new_rows_are_inserted_with_every_column(self):
        now = timezone.now()
        job = job_row(
            state=S.COMPLETED, version=3, stream=True, key_id=5, node_id="a" * 16, attempt_count=1, why="w",
            created_at=now, placed_at=now, first_token_at=now, finished_at=now, prompt_tokens=3,
            completion_tokens=7, http_status=200, error_code="c", error_message="m",
        )  # fmt: skip
        write_behind([job], [])
        found = stored(job)
        for name in job.__struct_fields__:
            assert getattr(found, name) == getattr(job, name), name

    @pytest.mark.parametrize("was", OPEN)
    def test_a_newer_version_replaces_an_open_one(self, was):
        job = job_row(state=was, version=2)
        write_behind([job], [])
        write_behind([job_row(id=job.id, state=S.COMPLETED, version=3, completion_tokens=9)], [])
        assert (stored(job).state, stored(job).completion_tokens) == (S.COMPLETED, 9)

    @pytest.mark.parametrize("version", [1, 2])
    def test_an_older_or_equal_version_changes_nothing(self, version):
        job = job_row(state=S.RUNNING, version=2, why="newer")
        write_behind([job], [])
        write_behind([job_row(id=job.id, state=S.FAILED, version=version, why="late")], [])
        assert (stored(job).state, stored(job).why) == (S.RUNNING, "newer")

    @pytest.mark.parametrize("end", sorted(TERMINAL))
    def test_a_terminal_row_is_never_overwritten(self, end):
        job = job_row(state=end, version=2)
        write_behind([job], [])
        write_behind([job_row(id=job.id, state=S.RUNNING, version=99)], [])
        assert (stored(job).state, stored(job).version) == (end, 2)

    def test_attempts_are_inserted_and_updated(self):
        job = job_row()
        write_behind([job], [attempt_row(job.id)])
        ended = attempt_row(job.id, outcome="done", finished_at=timezone.now())
        write_behind([], [ended, attempt_row(job.id, 2)])
        found = Attempt.objects.filter(job_id=job.id).order_by("number")
        assert list(found.values_list("number", "outcome")) == [(1, "done"), (2, "")]

    def test_a_mixed_batch_does_the_right_thing_for_each_row(self):
        new, newer, older, ended = (
            job_row(),
            job_row(version=1),
            job_row(version=5),
            job_row(version=1, state=S.FAILED),
        )
        write_behind([newer, older, ended], [])
        write_behind(
            [
                new,
                job_row(id=newer.id, version=2, state=S.RUNNING),
                job_row(id=older.id, version=4, state=S.RUNNING),
                job_row(id=ended.id, version=9, state=S.COMPLETED),
            ],
            [],
        )
        states = [stored(j).state for j in (new, newer, older, ended)]
        assert states == [S.PENDING, S.RUNNING, S.PENDING, S.FAILED]

    def test_nothing_is_written_of_a_batch_that_cannot_be_written_whole(self):
        from django.db import DatabaseError, transaction

        bad = job_row(model=None)
        with pytest.raises(DatabaseError), transaction.atomic():
            write_behind([job_row(), bad], [])
        assert not Job.objects.exists()

    def test_five_thousand_rows_twice(self):
        begin = timezone.now() - datetime.timedelta(hours=1)
        jobs = [job_row(created_at=begin) for _ in range(5000)]
        write_behind(jobs, [attempt_row(j.id) for j in jobs])
        for j in jobs:
            j.state, j.version = S.COMPLETED, 2
        write_behind(jobs, [attempt_row(j.id, outcome="done") for j in jobs])
        assert Job.objects.filter(state=S.COMPLETED).count() == 5000
        assert Attempt.objects.filter(outcome="done").count() == Attempt.objects.count() == 5000

    def test_an_empty_batch_is_no_mistake(self):
        write_behind([], [])
