"""Rows follow what happened in memory, also after the ledger was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from api.models import ApiKey
from jobs import accounting, upsert
from jobs.interactive import InteractiveJob, new_job_id
from jobs.lifecycle import Move
from jobs.models import Attempt, Job, JobState
from jobs.recorder import Recorder
from tests.jobs.desk import request
from tests.tables import rename
from worker_agent.contract import Done, Failed, Outcome, Usage


def job() -> InteractiveJob:
    made = InteractiveJob(new_job_id(), request(), 100)
    made.claim()
    return made


@pytest.fixture
async def recorder(ledger) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    yield recorder
    await recorder.stop()


@pytest.fixture
async def no_ledger(recorder) -> AsyncIterator[None]:
    """The table of attempts is away: a real failure of the database, in the second of two statements."""
    await rename("jobs_attempt", "jobs_attempt_away")
    yield
    if "jobs_attempt_away" in await sync_to_async(lambda: connection.introspection.table_names())():
        await rename("jobs_attempt_away", "jobs_attempt")


async def state(of: InteractiveJob) -> str | None:
    row = await Job.objects.filter(pk=of.id).afirst()
    return row.state if row else None


async def test_what_was_noted_is_written_with_its_attempts(recorder):
    jobs = [job() for _ in range(3)]
    for each in jobs:
        recorder.note(each)
    assert recorder.behind == 3
    await recorder.flush()
    assert recorder.behind == 0
    assert await Job.objects.acount() == await Attempt.objects.acount() == 3


async def test_the_newest_state_is_the_one_that_stays(recorder):
    this = job()
    recorder.note(this)
    await recorder.flush()
    this.on_placed("n1", 1)
    recorder.note(this)
    this.move(Move.COMPLETE)
    recorder.note(this)
    assert recorder.behind == 1
    await recorder.flush()
    assert await state(this) == JobState.COMPLETED


@pytest.fixture
def written(monkeypatch) -> list[tuple[list[object], bool]]:
    """Each statement that went to the database: its rows, and whether they went singly."""
    seen, write = [], upsert.write

    def watched(target, rows, using, *, singly, pause):
        seen.append((list(rows), singly))
        return write(target, rows, using, singly=singly, pause=pause)

    monkeypatch.setattr(upsert, "write", watched)
    return seen


async def test_an_end_that_was_written_while_the_job_rested_is_not_written_again(recorder, written):
    this, other = job(), job()
    this.on_placed("n1", 1)
    this.attempt_over("done")
    this.move(Move.COMPLETE)
    recorder.note(this)
    await recorder.flush()
    recorder.note(this)  # it has rested
    written.clear()
    await recorder.flush()
    assert (recorder.behind, written) == (0, [])
    recorder.note(this)
    recorder.note(other)
    await recorder.flush()
    assert [[getattr(row, "id", row.__class__.__name__) for row in rows] for rows, _ in written] == [
        [other.id],
        ["AttemptRow"],
    ]
    assert not any(singly for _, singly in written)


async def test_an_attempt_that_was_written_with_its_end_is_not_written_again_with_its_jobs(
    recorder, written, monkeypatch
):
    told: list[accounting.Entry] = []
    monkeypatch.setattr(accounting, "keepers", [lambda entries, using: told.extend(entries)])
    key = (await ApiKey.objects.acreate(name="k", prefix="p", key_hash="h")).pk
    this = InteractiveJob(new_job_id(), request(key=key), 100)
    this.claim()
    this.on_placed("n1", 1)
    done = Done(this.id, 1, this.lease, 0, 200, b"{}", "", Usage(12, 34), 1.5, 2.5)
    this.on_reply(done)  # and its caller reads slowly
    recorder.note(this)
    await recorder.flush()
    this.move(Move.COMPLETE)
    recorder.note(this)
    await recorder.flush()
    assert [(len(rows), singly) for rows, singly in written] == [
        (1, False),
        (1, False),
        (1, False),
        (0, False),
    ]
    assert await state(this) == JobState.COMPLETED
    assert (await Attempt.objects.aget(job=this.id)).outcome == "done"
    assert (sum(e.requests for e in told), sum(e.spent.total for e in told)) == (1, 46)


async def test_an_end_that_could_not_be_written_is_written_later(recorder, no_ledger):
    this = job()
    this.attempt_over("done")
    this.move(Move.CANCEL)
    recorder.note(this)
    await recorder.flush()
    await rename("jobs_attempt_away", "jobs_attempt")
    recorder.note(this)
    await recorder.flush()
    assert await state(this) == JobState.CANCELLED
    assert (await Attempt.objects.aget(job=this.id)).outcome == "done"


async def test_while_the_ledger_is_away_nothing_is_lost_and_nothing_half_written(recorder, no_ledger):
    first, second = job(), job()
    recorder.note(first)
    recorder.note(second)
    await recorder.flush()
    assert (recorder.behind, recorder.dropped) == (2, 0)
    assert await Job.objects.acount() == 0
    second.move(Move.CANCEL)  # it changes meanwhile
    recorder.note(second)
    await rename("jobs_attempt_away", "jobs_attempt")
    await recorder.flush()
    assert recorder.behind == 0
    assert (await state(first), await state(second)) == (JobState.PENDING, JobState.CANCELLED)


async def test_it_tries_again_by_itself(recorder, no_ledger, settings):
    settings.RECORD_SECONDS = 0.01
    this = job()
    recorder.note(this)
    recorder.start()
    await asyncio.sleep(0.05)
    assert recorder.behind == 1
    await rename("jobs_attempt_away", "jobs_attempt")
    async with asyncio.timeout(10):
        while await state(this) is None:  # noqa: ASYNC110 - another thread writes it
            await asyncio.sleep(0.01)
    assert recorder.behind == 0


async def test_what_is_left_is_written_when_it_stops(ledger):
    recorder, this = Recorder(), job()
    recorder.start()
    recorder.note(this)
    await recorder.stop()
    assert await state(this) == JobState.PENDING


async def test_more_than_one_batch(recorder):
    for _ in range(1500):
        recorder.note(job())
    await recorder.flush()
    assert recorder.behind == 0
    assert await Job.objects.acount() == 1500


async def test_the_loop_is_not_held_up_by_the_rows_of_a_whole_batch(recorder):
    for _ in range(400):
        recorder.note(job())
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    real, seen = recorder._in_thread, []

    async def in_thread(call):
        seen.append(turns)
        await real(call)

    recorder._in_thread = in_thread
    await asyncio.sleep(0)
    before = turns
    await recorder.flush()
    recorder._in_thread = real
    turning.cancel()
    assert seen[0] - before >= 8
    assert await Job.objects.acount() == 400


async def test_its_thread_leaves_the_core_now_and_then_unless_too_much_is_behind(recorder, monkeypatch):
    rests: list[int] = []
    monkeypatch.setattr("jobs.recorder._rest", lambda: rests.append(1))
    for _ in range(1400):
        recorder.note(job())
    assert await recorder._write_batch()
    assert rests == []
    assert await recorder._write_batch()
    on_sqlite = connection.vendor == "sqlite"  # elsewhere it waits for the server
    assert len(rests) == (2 * 13 if on_sqlite else 0)  # 400 rows in each of two tables
    assert await Job.objects.acount() == 1400


async def test_nothing_is_lost_if_it_is_stopped_while_it_makes_rows(ledger, settings):
    settings.RECORD_SECONDS = 0.01
    recorder = Recorder()
    recorder.start()
    for _ in range(400):
        recorder.note(job())
    while recorder.behind:  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)
    await recorder.stop()  # the first rows are made
    assert await Job.objects.acount() == 400


async def test_one_record_that_no_database_takes_costs_only_itself(recorder, caplog):
    jobs = [job() for _ in range(3)]
    jobs[1].error_code = None  # type: ignore[assignment]  # a column that must have something
    for each in jobs:
        recorder.note(each)
    await recorder.flush()
    assert (recorder.behind, recorder.dropped) == (0, 1)
    assert [await state(each) for each in jobs] == [JobState.PENDING, None, JobState.PENDING]
    assert jobs[1].id in caplog.text


async def test_words_of_a_node_are_written_whatever_is_in_them(recorder):
    this = job()
    this.on_placed("n1", 1)
    this.why = "why\0"
    this.on_reply(Failed(this.id, 1, this.lease, 0, Outcome.ENGINE_DIED, "a\0b"))
    this.error_message = "it said: a\0b"
    recorder.note(this)
    await recorder.flush()
    row, attempt = await Job.objects.aget(), await Attempt.objects.aget()
    assert (row.why, row.error_message, attempt.reason) == ("why\ufffd", "it said: a\ufffdb", "a\ufffdb")
    assert recorder.dropped == 0
