"""One job's events, in and out, without a wire."""

from __future__ import annotations

import asyncio
import re
import time

from jobs.interactive import InteractiveJob, Lost, new_job_id
from jobs.lifecycle import Move
from jobs.models import JobState
from tests.jobs.desk import request
from tests.jobs.scripted import done, work
from worker_agent.contract import Chunk, Failed, Outcome


def job(buffer_bytes: int = 100) -> InteractiveJob:
    """A job whose first attempt is placed."""
    made = InteractiveJob(new_job_id(), request(), buffer_bytes)
    made.claim()
    made.on_placed("n1", 1)
    return made


def chunk(of: InteractiveJob, data: bytes, seq: int = 0) -> Chunk:
    return Chunk(of.id, of.attempt, of.lease, seq, data)


def test_ids_are_uuids_of_version_seven_and_sort_by_time():
    early, late = new_job_id(), ""
    while late[:12] <= early[:12]:
        late = new_job_id()
    assert early < late
    assert re.fullmatch(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", early)
    assert abs(int(early[:12], 16) / 1000 - time.time()) < 60
    assert len({new_job_id() for _ in range(1000)}) == 1000


async def test_chunks_that_gathered_come_as_one_and_the_end_stays_apart():
    this = job()
    for n in range(3):
        this.on_reply(chunk(this, b"%d" % n, n))
    end = done(work(this.id))
    this.on_reply(end)
    first = await this.next()
    assert isinstance(first, Chunk)
    assert first.data == b"012"
    assert await this.next() == end


async def test_whoever_waits_is_woken():
    this = job()
    waiting = asyncio.create_task(this.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    this.on_reply(chunk(this, b"x"))
    assert await waiting == chunk(this, b"x")


async def test_what_lies_there_for_a_slow_reader_is_bounded():
    this = job(buffer_bytes=10)
    for n in range(50):
        this.on_reply(chunk(this, b"1234", n))
    first, second = await this.next(), await this.next()
    assert isinstance(first, Chunk)
    assert first.data == b"12341234"
    assert isinstance(second, Lost)
    assert second.outcome == this.current.outcome == "slow_client"
    assert not this._events


async def test_a_reader_who_keeps_up_is_never_too_slow():
    this = job(buffer_bytes=10)
    for n in range(50):
        this.on_reply(chunk(this, b"12345678", n))
        assert isinstance(await this.next(), Chunk)
    assert this.current.outcome == ""


def test_a_new_attempt_forgets_what_the_one_before_had_said():
    this = job()
    lease = this.lease
    this.on_reply(Failed(this.id, 1, this.lease, 0, Outcome.ENGINE_DIED, "died"))
    this.next_seq = 1
    this.claim()
    assert (this.attempt, this.next_seq, this.node, this.state) == (2, 0, "", JobState.PENDING)
    assert this.lease != lease
    assert not this._events
    assert this.tried == {"n1"}


def test_an_attempt_ends_once():
    this = job()
    this.on_reply(done(work(this.id)))
    this.give_up(Lost("node_lost", "gone"))
    assert (this.current.outcome, this.current.given_up) == ("done", False)


def test_only_the_first_word_of_a_placement_counts():
    this = job()
    version = this.version
    this.on_placed("n2", 5)
    assert (this.node, this.current.incarnation, this.version) == ("n1", 1, version)


def test_a_job_ends_once():
    this = job()
    assert this.move(Move.COMPLETE)
    assert not this.move(Move.CANCEL)
    assert this.state == JobState.COMPLETED
    assert this.ended


def test_its_rows_tell_the_whole_story():
    this = job()
    this.on_reply(Failed(this.id, 1, this.lease, 0, Outcome.ENGINE_DIED, "x" * 600))
    this.claim()
    this.on_placed("n2", 1)
    this.on_reply(done(work(this.id)))
    this.move(Move.COMPLETE)
    row, attempts = this.record()
    assert (row.node_id, row.attempt_count, row.state) == ("n2", 2, JobState.COMPLETED)
    assert (row.prompt_tokens, row.completion_tokens) == (3, 7)
    assert row.first_token_at
    assert row.finished_at
    assert row.first_token_at < row.finished_at
    assert [(a.number, a.node_id, a.outcome) for a in attempts] == [
        (1, "n1", "engine_died"),
        (2, "n2", "done"),
    ]
    assert len(attempts[0].reason) == 500
    assert attempts[0].finished_at
    assert attempts[0].finished_at <= attempts[1].claimed_at
