"""What is left to do for jobs whose answers are complete: when, in which order, and how often."""

from __future__ import annotations

import asyncio

import pytest

from jobs import afterwards
from jobs.afterwards import Afterwards
from jobs.interactive import InteractiveJob, new_job_id
from tests.jobs.desk import request
from tests.jobs.scripted import until


def job() -> InteractiveJob:
    return InteractiveJob(new_job_id(), request(), 100)


@pytest.fixture
def seen() -> list[InteractiveJob]:
    return []


async def test_what_others_wait_for_is_done_before_the_next_turn_is_over(seen):
    this = job()
    Afterwards(seen.append).add(this, soon=True)
    assert seen == []  # its answer is written first
    await asyncio.sleep(0)
    assert seen == [this]


async def test_what_rests_is_done_together_when_there_is_time(seen, monkeypatch):
    monkeypatch.setattr(afterwards, "REST_SECONDS", 60.0)
    jobs, rest = [job() for _ in range(3)], Afterwards(seen.append)
    for each in jobs:
        rest.add(each, soon=False)
    await asyncio.sleep(0.02)
    assert seen == []
    rest.all()
    assert seen == jobs
    rest.all()
    assert seen == jobs


async def test_what_rests_is_done_in_the_end_each_time_anew(seen, monkeypatch):
    monkeypatch.setattr(afterwards, "REST_SECONDS", 0.01)
    rest = Afterwards(seen.append)
    for count in (1, 2):
        rest.add(job(), soon=False)
        await until(lambda: len(seen) == count)  # noqa: B023 - awaited here
    rest.add(job(), soon=False)
    rest.all()  # and its timer does not come again
    await asyncio.sleep(0.03)
    assert len(seen) == 3


async def test_an_error_about_one_job_costs_neither_another_nor_whoever_has_time(seen, caplog):
    def see_to(it: InteractiveJob) -> None:
        if it is bad:
            raise ValueError("no")
        seen.append(it)

    good, bad, other = job(), job(), job()
    rest = Afterwards(see_to)
    for each in (good, bad, other):
        rest.add(each, soon=False)
    rest.all()
    assert seen == [good, other]
    assert f"not seen to the end job={bad.id}" in caplog.text
