"""What is counted, and that Redis has each count once."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from gputorrent.redis import Pipe, asynchronous
from jobs import metrics, vitals
from jobs.errors import NoSuchModel
from jobs.metrics import ERRORS, FIRST_TOKEN, REQUESTS, Histogram, Metrics, histograms, of_family
from tests.jobs.desk import Desk, request
from tests.jobs.scripted import until
from worker_agent.contract import Outcome

CHAT = "/v1/chat/completions"


class Lossy(Pipe):
    """A pipe whose answers can be lost after the command was carried out."""

    loses = False

    def run(self, *script, **how):
        return asyncio.ensure_future(self._run(super().run(*script, **how)))

    async def _run(self, answer):
        await answer
        if self.loses:
            raise redis.TimeoutError("the answer was lost")
        return answer.result()


async def counted(pipe, family):
    return of_family(await metrics.totals(pipe), family)


async def test_counts_of_several_processes_add_up(pipe):
    first, second = Metrics(pipe, "one"), Metrics(pipe, "two")
    first.add(ERRORS, "a")
    second.add(ERRORS, "a", by=2)
    second.add(ERRORS, "b")
    await first.flush()
    await second.flush()
    first.add(ERRORS, "a")
    await first.flush()
    assert await counted(pipe, ERRORS) == {("a",): 4, ("b",): 1}
    last_minute, seconds = await metrics.recent(pipe)
    assert of_family(last_minute, ERRORS) == {("a",): 4, ("b",): 1}
    assert 60 <= seconds < 66


async def test_a_flush_whose_answer_was_lost_counts_once(pipe):
    lossy = Lossy(asynchronous())
    counts = Metrics(lossy, "one")
    await counts.flush()  # nothing to say
    counts.add(ERRORS, "a")
    lossy.loses = True
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            await counts.flush()
    counts.add(ERRORS, "a")
    lossy.loses = False
    await counts.flush()
    await counts.flush()
    await lossy.close()
    assert await counted(pipe, ERRORS) == {("a",): 2}


async def test_a_flush_that_never_arrived_is_sent_again(pipe, wire):
    counts = Metrics(pipe, "one")
    counts.add(ERRORS, "a")
    wire.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
    try:
        with pytest.raises(redis.RedisError):
            await counts.flush()
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    counts.add(ERRORS, "b")
    await counts.flush()
    assert await counted(pipe, ERRORS) == {("a",): 1, ("b",): 1}


async def test_after_redis_came_back_empty_counting_goes_on(pipe, wire):
    counts = Metrics(pipe, "one")
    counts.add(ERRORS, "a")
    await counts.flush()
    wire.flushall()
    counts.add(ERRORS, "a")
    await counts.flush()
    assert await counted(pipe, ERRORS) == {("a",): 1}


async def test_what_another_counts_is_taken_over_once(pipe):
    counts, figure = Metrics(pipe, "one"), 3
    counts.sample(metrics.STALE, lambda: figure)
    await counts.flush()
    await counts.flush()
    figure = 5
    await counts.flush()
    assert await counted(pipe, metrics.STALE) == {(): 5}


async def test_times_fall_into_buckets_and_keep_their_sum(pipe):
    counts = Metrics(pipe, "one")
    for seconds in (-1.0, 0.005, 0.0051, 2.0, 1e6):
        counts.observe(metrics.times(FIRST_TOKEN, "m", "stream"), seconds)
    await counts.flush()
    found = histograms(await metrics.totals(pipe), FIRST_TOKEN)
    histogram = found["m", "stream"]
    assert {bound: n for bound, n in histogram.counts.items() if n} == {
        0.005: 2,
        0.01: 1,
        2.5: 1,
        float("inf"): 1,
    }
    assert histogram.sum_seconds == pytest.approx(1e6 + 2.0101)


def test_quantiles_are_those_of_prometheus():
    assert Histogram({1.0: 0, float("inf"): 0}).quantile(0.5) is None
    # histogram_quantile(0.5, ...) of 4 in (0, 1] and 4 in (1, 3] is 1; of 0.75 it is 2.
    even = Histogram({1.0: 4, 3.0: 4, float("inf"): 0})
    assert (even.quantile(0.5), even.quantile(0.75), even.quantile(0.25)) == (1.0, 2.0, 0.5)
    assert Histogram({1.0: 0, 3.0: 0, float("inf"): 5}).quantile(0.5) == 3.0


# -- jobs ----------------------------------------------------------------------------------------------


async def over(desk):
    """What the desk has counted, once all its jobs are over."""
    await desk.settled()
    assert not desk.dispatcher.jobs
    await desk.dispatcher.metrics.flush()
    return await metrics.totals(desk.dispatcher.pipe)


async def test_a_job_is_counted_once_with_its_times_and_tokens(desk, node):
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    node.done(work, 1, b"data: [DONE]\n\n")
    await asking.first()
    await asking.rest()
    found = await over(desk)
    assert of_family(found, REQUESTS) == {(CHAT, "m", "stream", "completed"): 1}
    assert of_family(found, metrics.JOBS) == {("m", "completed"): 1}
    assert of_family(found, metrics.ATTEMPTS) == {(node.node.name, "done"): 1}
    assert of_family(found, metrics.PROMPT_TOKENS) == {("m",): 3}
    assert of_family(found, metrics.COMPLETION_TOKENS) == {("m",): 7}
    assert not of_family(found, ERRORS)
    for family in (FIRST_TOKEN, metrics.TOTAL, metrics.QUEUE_WAIT):
        assert sum(histograms(found, family)["m", "stream"].counts.values()) == 1


async def test_refusals_are_counted_and_invented_models_have_no_name(desk, node):
    await desk.refresh()
    for model in ("invented-1", "invented-2"):
        with pytest.raises(NoSuchModel):
            await desk.dispatcher.submit(request(model=model))
    found = await over(desk)
    assert of_family(found, REQUESTS) == {(CHAT, "unknown", "stream", "model_not_found"): 2}
    assert of_family(found, ERRORS) == {("model_not_found",): 2}
    assert not of_family(found, metrics.JOBS)  # the ledger has no row of them


async def test_each_attempt_is_counted_by_its_outcome(desk, node):
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    node.chunk(work, 0, b"data: 1\n\n")
    node.fail(work, Outcome.ENGINE_DIED, 1)
    await asking.first()
    with pytest.raises(Exception, match="engine died"):
        await asking.rest()
    found = await over(desk)
    assert of_family(found, metrics.ATTEMPTS) == {(node.node.name, "engine_died"): 1}
    assert of_family(found, REQUESTS) == {(CHAT, "m", "stream", "upstream_failed"): 1}
    assert of_family(found, metrics.JOBS) == {("m", "failed"): 1}
    assert not of_family(found, metrics.TOTAL)


async def test_a_caller_who_left_is_counted_when_the_node_has_stopped(desk, node):
    await desk.refresh()
    asking = desk.ask()
    work = await node.take()
    await asking.leave()
    await desk.look()
    assert not desk.dispatcher.metrics.pending
    node.fail(work, Outcome.CANCELLED)
    await until(lambda: asking.job.current.outcome)
    await desk.look()
    found = await over(desk)
    assert of_family(found, REQUESTS) == {(CHAT, "m", "stream", "client_closed"): 1}
    assert of_family(found, metrics.ATTEMPTS) == {(node.node.name, "cancelled"): 1}


async def test_who_leaves_the_queue_is_counted_once_though_two_see_to_it(desk, node):
    await desk.refresh()
    first, second = desk.ask(), desk.ask()
    work = await node.take()
    await until(lambda: second.job)
    await second.leave()
    desk.watch.look(time.monotonic() + 60)  # gives it up, while the board is being told that it has left
    node.done(work)
    await first.first()
    found = await over(desk)
    assert of_family(found, REQUESTS)[CHAT, "m", "stream", "client_closed"] == 1


async def test_what_is_left_when_a_process_stops_is_counted_before_it_goes(ledger, node, pipe):
    desk = Desk()
    await desk.dispatcher.start()
    await desk.refresh()
    await desk.dispatcher.submit(request())
    await desk.dispatcher.stop()
    found = await metrics.totals(pipe)
    assert of_family(found, REQUESTS) == {(CHAT, "m", "stream", "client_closed"): 1}


async def test_a_process_says_how_it_does_until_it_is_gone(desk, wire):
    await desk.watch.vitals.publish()
    (figures,) = await vitals.read(desk.dispatcher.pipe)
    assert figures.resident_bytes > 1e6
    assert figures.open_fds > 3
    assert figures.started_at > 1e9
    wire.delete(f"gt:web:{desk.dispatcher.mailbox.web}")
    assert await vitals.read(desk.dispatcher.pipe) == []
    assert not wire.exists(vitals.PROCESSES)
