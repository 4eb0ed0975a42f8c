"""The limits of keys on a real Redis: two limiters stand for two web processes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from api import limits, limits_in_words, usage
from api.authentication import Caller, Limits
from api.errors import ApiError
from api.limits import Limiter, Permit
from gputorrent.redis import Pipe, asynchronous
from jobs.errors import BrokerUnavailable
from jobs.interactive import InteractiveJob, Lost, new_job_id
from jobs.lifecycle import Move
from jobs.mailbox import web_key
from tests.jobs.desk import request
from tests.jobs.scripted import until
from worker_agent.contract import Done, Usage

WEBS = ("web-a", "web-b")
BODY = b"x" * 36  # about 10 tokens
LIMITED = ("requests_per_minute", "tokens_per_minute", "concurrency", "tokens_per_day", "tokens_per_month")


def caller(key: int = 7, **limited: Any) -> Caller:
    return Caller(key, "ann", False, 0.0, limits=Limits(**limited))


def asked(answer: int | None = 90, body: bytes = BODY) -> Any:
    """A request that reserves 10 tokens for its prompt and so many for its answer."""
    return request(body=body, answer_tokens=answer)


@pytest.fixture
async def limiters(wire) -> AsyncIterator[list[Limiter]]:
    clients = [asynchronous() for _ in WEBS]
    for web in WEBS:
        wire.set(web_key(web), "1")
    yield [Limiter(Pipe(client), web) for client, web in zip(clients, WEBS, strict=True)]
    for client in clients:
        await client.aclose()


@pytest.fixture
def limiter(limiters) -> Limiter:
    return limiters[0]


async def admitted(limiter: Limiter, who: Caller, wanted: Any = None, **how: Any) -> Permit:
    permit = await limiter.admit(who, wanted or asked(), **how)
    assert permit
    return permit


async def refused(limiter: Limiter, who: Caller, wanted: Any = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await limiter.admit(who, wanted or asked())
    assert caught.value.status == 429
    return caught.value


async def over(permit: Permit, job: InteractiveJob) -> None:
    """The job is over, and what that says has been answered."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    permit.over(job, answered.set_result)
    if isinstance(answer := await answered, Exception):
        raise answer


def header(headers: Any, name: str) -> str | None:
    return dict(headers).get(name.encode(), b"").decode() or None


def pass_time(wire, key: int, seconds: int) -> None:
    """Move all that Redis holds of a key's window so far into the past."""
    name = f"gt:limits:window:{key}"
    have = {k.decode(): int(v) for k, v in wire.hgetall(name).items()}
    at = have["at"]
    moved = {field: have[field] for field in ("r", "t") if field in have}
    moved |= {f: have[f] - seconds for f in ("at", "lr", "lt") if f in have}
    for back in range(61):
        for kind in "rt":
            field = f"{kind}{(at - back) % 61}"
            if field in have:
                moved[f"{kind}{(at - back - seconds) % 61}"] = have[field]
    wire.delete(name)
    wire.hset(name, mapping=moved)


def spent_now(day_tokens: int, month_tokens: int) -> usage.Spent:
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return usage.Spent(day, day[:7], day_tokens, month_tokens)


# -- exactly so many -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", LIMITED)
async def test_of_three_times_as_many_at_once_exactly_so_many_are_admitted(limiters, what):
    limit = 20 if what in {"requests_per_minute", "concurrency"} else 20 * 100
    who = caller(**{what: limit})
    answers = await asyncio.gather(
        *(limiters[n % 2].admit(who, asked()) for n in range(60)), return_exceptions=True
    )
    assert sum(isinstance(a, Permit) for a in answers) == 20
    assert {a.status for a in answers if isinstance(a, ApiError)} == {429}


async def test_a_key_without_limits_pays_nothing(limiter, wire):
    assert await limiter.admit(Caller(1, "ann", False, 0.0), asked()) is None
    assert not wire.keys("gt:limits:*")


async def test_keys_do_not_share_their_limits(limiter):
    await admitted(limiter, caller(1, requests_per_minute=1))
    await admitted(limiter, caller(2, requests_per_minute=1))
    await refused(limiter, caller(1, requests_per_minute=1))


async def test_a_request_counts_for_a_minute_and_not_longer(limiter, wire):
    who = caller(requests_per_minute=2, tokens_per_minute=1000)
    await admitted(limiter, who)
    pass_time(wire, 7, 40)
    await admitted(limiter, who)
    error = await refused(limiter, who)
    assert 18 <= int(header(error.headers, "retry-after") or 0) <= 21
    pass_time(wire, 7, 19)
    await refused(limiter, who)
    pass_time(wire, 7, 3)
    permit = await admitted(limiter, who)
    assert header(permit.headers, "x-ratelimit-remaining-tokens") == "800"
    await refused(limiter, who)
    pass_time(wire, 7, 100)
    permit = await admitted(limiter, who)
    assert header(permit.headers, "x-ratelimit-remaining-requests") == "1"


async def test_what_is_refused_costs_nothing(limiter, wire):
    who = caller(requests_per_minute=5, tokens_per_minute=100, tokens_per_day=1000, concurrency=5)
    await admitted(limiter, who)
    before = wire.hgetall("gt:limits:window:7"), wire.get("gt:limits:reserved:7")
    for _ in range(3):
        await refused(limiter, who)
    after = wire.hgetall("gt:limits:window:7")
    assert after[b"r"], after[b"t"] == (before[0][b"r"], before[0][b"t"])
    assert wire.get("gt:limits:reserved:7") == before[1]


async def test_asked_twice_since_an_answer_was_lost_it_counts_once(limiter, wire):
    limits = Limits(requests_per_minute=1, concurrency=1)
    permit = Permit(limiter, 7, "p", waits=True, limits=limits, tokens=10)
    question = limiter._question(permit)
    first, second = [(await limiter._script(*question))[0] for _ in range(2)]
    assert (first, second) == (b"ok", b"ok")
    assert wire.hget("gt:limits:window:7", "r") == b"1"


# -- tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("took", "left"), [(0, 1000), (30, 970), (100, 900), (250, 750)])
async def test_tokens_are_corrected_by_what_was_really_used(limiter, took, left):
    who = caller(tokens_per_minute=1000)
    permit = await admitted(limiter, who)
    assert header(permit.headers, "x-ratelimit-remaining-tokens") == "900"
    for _ in range(2):  # the second time nothing changes
        await limiter.settle(permit, took, served=True)
    again = await admitted(limiter, who)
    assert header(again.headers, "x-ratelimit-remaining-tokens") == str(left - 100)


async def test_what_took_more_than_a_minute_and_more_than_reserved_counts_when_it_ends(limiter, wire):
    who = caller(tokens_per_minute=1000)
    permit = await admitted(limiter, who)
    at = int(wire.hget("gt:limits:window:7", "at"))
    wire.hset("gt:limits:open:7", permit.name, f"{WEBS[0]} 100 {at - 90}")
    pass_time(wire, 7, 90)
    await limiter.settle(permit, 700, served=True)
    again = await admitted(limiter, who)
    assert header(again.headers, "x-ratelimit-remaining-tokens") == "300"


async def test_a_request_larger_than_the_limit_is_not_to_be_tried_again(limiter):
    error = await refused(limiter, caller(tokens_per_minute=99))
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert header(error.headers, "x-should-retry") == "false"
    assert header(error.headers, "retry-after") is None
    assert "too large" in error.message


def test_the_estimate_knows_how_long_a_prompt_can_be(settings):
    settings.ANSWER_TOKENS_ASSUMED = 50
    assert limits.estimate(asked()) == 100
    assert limits.estimate(asked(answer=None)) == 60
    assert limits.estimate(asked(answer=0)) == 10
    picture = asked(body=b"x" * 4_000_000)
    assert limits.estimate(picture) == 1_000_001 + 90
    assert limits.estimate(picture, context=4096) == 4096 + 90
    several = request(body=picture.body, answer_tokens=0, prompts=10)
    assert limits.estimate(several, context=4096) == 40_960


# -- at once -------------------------------------------------------------------------------------------


async def test_a_place_that_was_given_back_is_free(limiters):
    who = caller(concurrency=2)
    first, _ = await admitted(limiters[0], who), await admitted(limiters[1], who)
    error = await refused(limiters[0], who)
    assert (error.code, header(error.headers, "retry-after")) == ("rate_limit_exceeded", "1")
    await over(first, served_job(tokens=3))
    await admitted(limiters[1], who)
    await refused(limiters[1], who)


async def test_places_of_a_web_process_that_is_gone_are_free(limiters, wire):
    who = caller(concurrency=2, tokens_per_day=210)
    for limiter in limiters:
        await admitted(limiter, who)
    await refused(limiters[1], who)
    wire.delete(web_key(WEBS[0]))
    pass_time(wire, 7, 1)  # it is looked for once a second
    await admitted(limiters[1], who)  # the tokens that it had reserved are free, too
    await refused(limiters[1], who)


async def test_asynchronous_work_takes_no_place_and_its_permit_runs_out(limiter, wire):
    who = caller(concurrency=1, tokens_per_day=210)
    await admitted(limiter, who, deferred="j1")
    await admitted(limiter, who)
    await refused(limiter, who)
    entry = wire.hget("gt:limits:deferred:7", "j1").decode().split()
    wire.hset("gt:limits:deferred:7", "j1", f"1 {entry[1]} {entry[2]}")
    wire.delete(web_key(WEBS[0]))
    pass_time(wire, 7, 1)
    await admitted(limiter, who)
    assert wire.hlen("gt:limits:deferred:7") == 0


# -- budgets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["tokens_per_day", "tokens_per_month"])
async def test_a_budget_that_is_used_up_is_insufficient_quota(limiter, what):
    who = caller(**{what: 250})
    permit = await admitted(limiter, who)
    await limiter.settle(permit, 180, served=True)
    assert not limiter.known(7).tight
    error = await refused(limiter, who)
    assert limiter.known(7).tight
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert int(header(error.headers, "retry-after") or 0) > 1 or seconds_left(what) < 5
    await admitted(limiter, who, asked(answer=50))  # a smaller one still fits


def seconds_left(what: str) -> float:
    now = datetime.datetime.now(datetime.UTC)
    midnight = now.replace(hour=0, minute=0, second=0) + datetime.timedelta(days=1)
    return (midnight - now).total_seconds() if what == "tokens_per_day" or midnight.day == 1 else math.inf


async def test_what_is_under_way_is_reserved_from_the_budget(limiters):
    who = caller(tokens_per_day=250)
    permits = [await admitted(limiter, who) for limiter in limiters]
    error = await refused(limiters[0], who)
    assert header(error.headers, "retry-after") == "1"  # it may take less than it reserved
    for permit in permits:
        await limiters[0].settle(permit, 10, served=True)
    await admitted(limiters[0], who)


@pytest.mark.parametrize(
    ("limited", "pressing"),
    [
        ({"requests_per_minute": 1}, False),  # nothing of that comes back at the end
        ({"concurrency": 2}, False),
        ({"concurrency": 1}, True),
        ({"tokens_per_minute": 200}, False),
        ({"tokens_per_minute": 199}, True),
        ({"tokens_per_day": 200}, False),
        ({"tokens_per_day": 199}, True),
        ({"tokens_per_month": 199}, True),
        ({"tokens_per_day": 199, "tokens_per_month": 9000}, True),
        ({"tokens_per_day": 9000, "tokens_per_month": 199, "concurrency": 9}, True),
    ],
)
async def test_what_is_given_back_is_pressing_where_half_is_used(limiter, limited, pressing):
    permit = await admitted(limiter, caller(**limited))  # 100 tokens
    assert permit.pressing == pressing


@pytest.mark.parametrize("limited", [{"concurrency": 3}, {"tokens_per_day": 399}, {"tokens_per_month": 399}])
async def test_whether_half_is_used_is_as_the_last_answer_said(limiter, limited):
    who = caller(**limited)
    first, _ = await admitted(limiter, who), await admitted(limiter, who)
    assert first.pressing


async def test_budgets_outlive_redis_and_windows_start_anew(limiter, wire):
    def who(spent: usage.Spent) -> Caller:
        return caller(tokens_per_day=1000, tokens_per_month=9000, requests_per_minute=1, spent=spent)

    permit = await admitted(limiter, who(usage.NOTHING_SPENT))
    wire.flushall()
    await limiter.settle(permit, 100, served=True)  # Redis knows nothing of it any more
    await admitted(limiter, who(spent_now(900, 900)))
    wire.flushall()
    for spent in (spent_now(901, 901), spent_now(0, 8901)):
        assert (await refused(limiter, who(spent))).code == "insufficient_quota"
    yesterday = usage.Spent("2020-01-01", "2020-01", 5000, 50_000)
    wire.flushall()
    await admitted(limiter, who(yesterday))


async def test_an_old_figure_of_the_ledger_does_not_make_spent_tokens_good(limiter):
    who = caller(tokens_per_day=1000, spent=spent_now(100, 100))
    permit = await admitted(limiter, who)
    await limiter.settle(permit, 850, served=True)
    assert (await refused(limiter, who)).code == "insufficient_quota"


# -- how a job ends ------------------------------------------------------------------------------------


def a_job() -> InteractiveJob:
    return InteractiveJob(new_job_id(), asked(), 1000)


def served_job(tokens: int) -> InteractiveJob:
    job = a_job()
    job.claim()
    job.on_placed("n1")
    usage_told = Usage(1, tokens - 1)
    job.on_reply(Done(job.id, 1, job.lease, 0, 200, b"{}", "application/json", usage_told, 1.0, 2.0))
    return job


def refused_job(code: str) -> InteractiveJob:
    job = a_job()
    job.claim()
    job.give_up(Lost("not_placed", ""))
    job.move(Move.FAIL)
    job.error_code = code
    return job


@pytest.mark.parametrize(
    ("job", "requests_left", "tokens_left"),
    [
        (served_job(30), 9, 970),
        (refused_job("queue_full"), 10, 1000),
        (refused_job("no_workers"), 10, 1000),
        (refused_job("model_not_found"), 9, 1000),
    ],
)
async def test_what_never_reached_a_node_is_given_back(limiter, job, requests_left, tokens_left):
    who = caller(requests_per_minute=10, tokens_per_minute=1000, concurrency=1)
    permit = await admitted(limiter, who)
    await over(permit, job)
    again = await admitted(limiter, who)
    assert header(again.headers, "x-ratelimit-remaining-requests") == str(requests_left - 1)
    assert header(again.headers, "x-ratelimit-remaining-tokens") == str(tokens_left - 100)


async def test_nothing_is_left_once_all_is_over(limiter, wire):
    who = caller(concurrency=3, tokens_per_day=1000, tokens_per_minute=1000)
    permits = [await admitted(limiter, who) for _ in range(3)]
    for permit in permits:
        await over(permit, served_job(10))
    left = {key.decode().split(":")[2] for key in wire.keys("gt:limits:*")}
    assert left == {"window", "spent"}
    assert all(wire.ttl(key) > 0 for key in wire.keys("gt:limits:*"))


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_caller_who_leaves_while_redis_is_asked_costs_nothing(limiter, wire, forgotten):
    who = caller(concurrency=1)
    if forgotten:
        wire.script_flush()
    task = asyncio.create_task(limiter.admit(who, asked()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await until(lambda: wire.exists("gt:limits:window:7"))  # it was counted
    await until(lambda: not wire.exists("gt:limits:open:7"))
    await admitted(limiter, who)


async def test_what_could_not_be_settled_is_settled_later(limiter, wire):
    who = caller(concurrency=1, tokens_per_day=1000)
    permit = await admitted(limiter, who)
    wire.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha")
    try:
        with pytest.raises(redis.RedisError):
            await over(permit, served_job(40))
        await limiter.catch_up()
        with pytest.raises(BrokerUnavailable):
            await limiter.admit(who, asked())
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    await limiter.catch_up()
    assert not wire.exists("gt:limits:open:7")
    await admitted(limiter, who)
    assert wire.get(f"gt:limits:spent:7:{spent_now(0, 0).day}") == b"40"


# -- headers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.4, "59s"), (60, "1m0s"), (360, "6m0s"), (7200, "2h0m0s")],
)
def test_a_time_is_written_as_openai_writes_it(seconds, text):
    assert limits_in_words.span(seconds) == text


async def test_headers_tell_of_those_limits_that_there_are(limiter):
    permit = await admitted(limiter, caller(requests_per_minute=5))
    assert [name for name, _ in permit.headers] == [
        b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
    ]  # fmt: skip
    assert header(permit.headers, "x-ratelimit-limit-requests") == "5"
    assert header(permit.headers, "x-ratelimit-remaining-requests") == "4"
    assert header(permit.headers, "x-ratelimit-reset-requests") in {"1m0s", "1m1s"}
    assert (await admitted(limiter, caller(8, concurrency=5))).headers == []
