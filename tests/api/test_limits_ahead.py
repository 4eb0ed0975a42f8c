"""Limits counted in advance, on a real Redis: two limiters stand for two web processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import pytest
import redis

from api import allowance
from api.authentication import Caller, Limits
from api.errors import ApiError
from api.limits import Limiter, Permit
from jobs.errors import BrokerUnavailable
from jobs.mailbox import web_key
from tests.api.test_limits import WEBS, admitted, asked, caller, header, limiters, refused
from tests.jobs.scripted import until

__all__ = ["limiters"]

ROOMY: dict[str, Any] = {
    "requests_per_minute": 10_000,
    "tokens_per_minute": 10_000_000,
    "concurrency": 10_000,
    "tokens_per_day": 10**9,
    "tokens_per_month": 10**9,
}


@pytest.fixture(autouse=True)
def at_the_beginning_of_a_second(wire) -> None:
    """So that what a test does at once falls into one second of Redis's clock."""
    while wire.time()[1] > 200_000:
        time.sleep(0.01)


@pytest.fixture
def eager(monkeypatch) -> None:
    """Everybody asks often enough, from the first request on."""
    monkeypatch.setattr(allowance.Pace, "wants", lambda _: (40, 60))


@pytest.fixture
def limiter(limiters) -> Limiter:
    return limiters[0]


async def warmed(limiter: Limiter, who: Caller, count: int = 9) -> list[Permit]:
    """So many requests, after which the process has an allowance."""
    permits = [await admitted(limiter, who) for _ in range(count)]
    assert limiter.known(who.key).allowance
    return permits


def calls(wire: redis.Redis) -> int:
    return wire.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


def counted(wire: redis.Redis, key: int = 7) -> tuple[int, int]:
    """Requests and tokens in the window."""
    r, t = wire.hmget(f"gt:limits:window:{key}", "r", "t")
    return int(r or 0), int(t or 0)


async def settled(limiter: Limiter) -> None:
    """Everything is given back that this process may give back."""
    await limiter.stop()
    await asyncio.sleep(0.02)


async def test_who_asks_often_is_admitted_without_redis(limiter, wire):
    who = caller(**ROOMY)
    await warmed(limiter, who)
    before = calls(wire)
    left = []
    for _ in range(5):
        permit = limiter.ask(who, who.limits, asked())
        assert permit.proof is None
        await permit.granted()
        left.append(header(permit.headers, "x-ratelimit-remaining-requests"))
        assert header(permit.headers, "x-ratelimit-reset-requests") in {"1m1s", "1m0s"}
        await limiter.settle(permit, 40, served=True)
    assert calls(wire) == before
    assert left == ["9990", "9989", "9988", "9987", "9986"]


async def test_who_asks_seldom_has_each_request_weighed(limiter, wire):
    who = caller(**ROOMY)
    before = calls(wire)
    for _ in range(7):
        await admitted(limiter, who)
    assert calls(wire) == before + 7
    assert wire.exists("gt:limits:allowed:7") == 0


async def test_what_was_not_used_goes_back_when_the_second_is_over(limiter, wire):
    who = caller(**ROOMY)
    permits = [*await warmed(limiter, who), *[await admitted(limiter, who) for _ in range(2)]]
    assert counted(wire)[0] > 11
    for permit in permits:
        limiter.tell_settled(permit, 40, served=True, heard=lambda _: None)
    await until(lambda: counted(wire) == (11, 440))
    await until(lambda: not wire.keys("gt:limits:allowed:*") and not wire.exists("gt:limits:reserved:7"))
    spent = {key.rpartition(b":")[2]: int(wire.get(key)) for key in wire.keys("gt:limits:spent:*")}
    assert sorted(spent.values()) == [440, 440]


async def test_what_is_under_way_for_longer_is_counted_when_it_ends(limiter, wire):
    who = caller(**ROOMY)
    permits = await warmed(limiter, who)
    late = [await admitted(limiter, who) for _ in range(2)]
    for permit in permits:
        await limiter.settle(permit, 0, served=True)
    await settled(limiter)
    assert counted(wire) == (11, 200)
    assert wire.hget("gt:limits:allowed:7", "") == b"2"
    assert int(wire.get("gt:limits:reserved:7")) == 200
    assert wire.ttl("gt:limits:allowed:7") > 3600
    await limiter.settle(late[0], 30, served=True)
    await limiter.settle(late[1], 0, served=False)
    await until(lambda: counted(wire) == (10, 30))
    assert not wire.keys("gt:limits:allowed:*")
    assert wire.exists("gt:limits:reserved:7") == 0


@pytest.mark.parametrize(
    ("limited", "gets"),
    [
        ({"requests_per_minute": 1000}, (100, 124)),  # an eighth of what is left
        ({"requests_per_minute": 65}, (8, 8)),
        ({"requests_per_minute": 64}, None),  # a few are not worth it
        ({"tokens_per_minute": 100_000}, (100, 124)),
        ({"tokens_per_day": 100_000}, (100, 124)),
        ({"tokens_per_month": 100_000}, (100, 124)),
        ({"tokens_per_month": 6_000}, None),
        ({"concurrency": 100, "requests_per_minute": 10_000}, (500, 500)),
        ({"concurrency": 65, "requests_per_minute": 10_000}, (500, 500)),
        ({"concurrency": 64, "requests_per_minute": 10_000}, None),
        ({"concurrency": 1}, None),
    ],
)
async def test_an_allowance_is_an_eighth_of_what_is_left_at_most(limiter, monkeypatch, limited, gets):
    monkeypatch.setattr(allowance.Pace, "wants", lambda _: (500, 50))
    await admitted(limiter, caller(**limited))
    given = limiter.known(7).allowance
    if gets is None:
        assert given is None
    else:
        assert gets[0] <= given.requests <= gets[1]
        assert given.slots <= max(1, (limited.get("concurrency") or 400) // 8)


async def test_none_where_more_than_half_is_used(limiter, eager):
    who = caller(tokens_per_minute=100_000)
    await admitted(limiter, who, asked(answer=50_000))
    assert limiter.known(7).allowance is None


@pytest.mark.parametrize("what", ["requests_per_minute", "tokens_per_minute", "tokens_per_day"])
async def test_one_process_admits_exactly_so_many(limiter, eager, what):
    limit = 200 if what == "requests_per_minute" else 200 * 100
    who = caller(**{what: limit})
    answers: list[Any] = []
    for _ in range(15):
        answers += await asyncio.gather(
            *(limiter.admit(who, asked()) for _ in range(20)), return_exceptions=True
        )
    assert sum(isinstance(a, Permit) for a in answers) == 200
    assert {a.status for a in answers if isinstance(a, ApiError)} == {429}


async def test_one_process_has_exactly_so_many_at_once(limiter, eager):
    who = caller(concurrency=100)
    permits = []
    with contextlib.suppress(ApiError):
        while True:
            permits.append(await admitted(limiter, who))
    assert len(permits) == 100
    for permit in permits[:30]:
        await limiter.settle(permit, 5, served=True)
    for _ in range(30):
        await admitted(limiter, who)
    await refused(limiter, who)


async def test_what_one_process_has_and_does_not_use_is_anothers_a_second_later(limiters, eager):
    who = caller(requests_per_minute=100)
    await admitted(limiters[0], who)
    has = limiters[0].known(7).allowance.requests
    assert has >= 8
    count = 0
    with contextlib.suppress(ApiError):
        while True:
            await admitted(limiters[1], who)
            count += 1
    assert count == 99 - has
    await until(lambda: limiters[0].known(7).allowance is None)
    await asyncio.sleep(0.02)
    for _ in range(has):
        await admitted(limiters[1], who)
    await refused(limiters[1], who)


async def test_places_of_a_process_that_is_gone_are_free(limiters, eager, wire):
    who = caller(concurrency=100, tokens_per_day=1_000_000)
    await admitted(limiters[0], who)
    await admitted(limiters[0], who)
    assert int(wire.hget("gt:limits:allowed:7", "")) > 0
    wire.delete(web_key(WEBS[0]))
    wire.hset("gt:limits:window:7", "purged", 0)  # it is looked for once a second
    permits = []
    with contextlib.suppress(ApiError):
        while True:
            permits.append(await admitted(limiters[1], who))
    assert len(permits) == 100


async def test_an_account_counts_once_however_often_it_is_told(limiter, wire):
    who = caller(**ROOMY)
    permits = await warmed(limiter, who)
    permits.append(await admitted(limiter, who))
    it = limiter.known(7).allowance
    await limiter.settle(permits[-1], 40, served=True)
    it.close()
    account = it.account()
    assert account is not None
    assert await limiter._script(*account) == 1
    there = counted(wire)
    assert await limiter._script(*account) == 0
    assert counted(wire) == there


async def test_an_account_that_could_not_be_told_is_told_later(limiter, wire):
    who = caller(**ROOMY)
    permits = [*await warmed(limiter, who), await admitted(limiter, who), await admitted(limiter, who)]
    for permit in permits[:-1]:
        await limiter.settle(permit, 40, served=True)
    real, lost = limiter._script.tell, []

    def tell(verb: str, *arguments: Any, heard: Any) -> None:
        lost.append(verb)
        heard(redis.ConnectionError("cut"))

    limiter._script.tell = tell
    limiter._close(limiter.known(7))
    limiter._script.tell = real
    assert lost == ["account"]
    await limiter.settle(permits[-1], 20, served=True)  # meanwhile
    assert counted(wire)[0] > 11
    await limiter.catch_up()
    await until(lambda: counted(wire) == (11, 420))
    assert not wire.keys("gt:limits:allowed:*")


async def test_an_allowance_whose_answer_was_lost_goes_back_whole(limiter, wire):
    who = caller(**ROOMY)
    for _ in range(7):
        await admitted(limiter, who)
    real = limiter._script.tell

    def tell(*step: Any, heard: Any) -> None:
        real(*step, heard=lambda _: heard(redis.ConnectionError("cut")))

    limiter._script.tell = tell
    with pytest.raises(BrokerUnavailable):
        await limiter.admit(who, asked())
    limiter._script.tell = real
    assert counted(wire)[0] > 8
    await limiter.catch_up()
    assert counted(wire) == (7, 700)
    assert not wire.keys("gt:limits:allowed:*")


async def test_asked_twice_since_an_answer_was_lost_it_is_given_once(limiter, wire, eager):
    who = caller(**ROOMY)
    permit = limiter.ask(who, who.limits, asked())
    await permit.granted()
    has = limiter.known(7).allowance
    question = (*limiter._question(permit), has.name, 999, 9)
    before = counted(wire)
    *_, requests, tokens, slots, lasts = await limiter._script(*question)
    assert (requests, tokens, slots) == (has.requests, has.tokens, has.slots)
    assert lasts <= 1000
    assert counted(wire) == before


async def test_asked_again_there_is_none_where_there_was_none(limiter, wire):
    who = caller(**ROOMY)
    permit = await admitted(limiter, who)
    before = counted(wire)
    assert len(await limiter._script(*limiter._question(permit), "later", 40, 9)) == 7
    assert counted(wire) == before


async def test_what_took_more_and_longer_than_a_minute_counts_when_it_ends(limiter, wire):
    who = caller(**ROOMY)
    for permit in await warmed(limiter, who):
        await limiter.settle(permit, 0, served=True)
    late = [await admitted(limiter, who) for _ in range(2)]
    await settled(limiter)
    before = counted(wire)
    [(name, entry)] = [(n, e.split()) for n, e in wire.hgetall("gt:limits:allowed:7").items() if n]
    wire.hset("gt:limits:allowed:7", name, b" ".join([*entry[:2], b"%d" % (int(entry[2]) - 62), *entry[3:]]))
    await limiter.settle(late[0], 20, served=True)  # less: it is too late to give that back
    await limiter.settle(late[1], 150, served=True)
    await until(lambda: not wire.keys("gt:limits:allowed:*"))
    assert counted(wire) == (before[0], before[1] + 50)


async def test_the_allowance_of_a_caller_who_leaves_is_not_lost(limiter, wire, eager):
    who = caller(**ROOMY)
    asking = asyncio.create_task(limiter.admit(who, asked()))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: limiter.known(7).allowance)
    await settled(limiter)
    assert counted(wire) == (0, 0)
    assert not wire.keys("gt:limits:allowed:*")


async def test_what_took_more_than_was_counted_is_told_at_once(limiter, wire, eager):
    who = caller(**ROOMY)
    await admitted(limiter, who)
    it = limiter.known(7).allowance
    permit = await admitted(limiter, who)
    assert permit.allowance is it
    await limiter.settle(permit, 10_000_000, served=True)
    assert limiter.known(7).allowance is None
    await until(lambda: counted(wire)[1] >= 10_000_000)
    await refused(limiter, who)


# -- by chance -----------------------------------------------------------------------------------------

LIMITS: list[dict[str, Any]] = [
    {"requests_per_minute": 150},
    {"tokens_per_minute": 20_000},
    {"concurrency": 70},
    {"tokens_per_day": 18_000},
    {"requests_per_minute": 300, "tokens_per_minute": 40_000, "concurrency": 90, "tokens_per_month": 30_000},
]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_limit_is_passed_and_everything_is_counted(limiters, wire, eager, seed):
    chance = random.Random(seed)
    limits = Limits(**chance.choice(LIMITS))
    who = Caller(7, "ann", False, 0.0, limits=limits)
    open_: list[tuple[Limiter, Permit]] = []
    requests = used = 0

    def check() -> None:
        reserved = sum(permit.tokens for _, permit in open_)
        assert not limits.requests_per_minute or requests <= limits.requests_per_minute
        assert not limits.concurrency or len(open_) <= limits.concurrency
        for most in (limits.tokens_per_minute, limits.tokens_per_day, limits.tokens_per_month):
            assert not most or used + reserved <= most
        there = counted(wire)
        assert there[0] >= requests
        assert there[1] >= used + reserved

    for _ in range(60):
        what = chance.random()
        limiter = chance.choice(limiters)
        if what < 0.55:
            wanted = [asked(answer=chance.choice([0, 40, 90])) for _ in range(chance.choice([1, 1, 5, 12]))]
            answers = await asyncio.gather(
                *(limiter.admit(who, each) for each in wanted), return_exceptions=True
            )
            got = [answer for answer in answers if isinstance(answer, Permit)]
            assert len(got) + sum(isinstance(answer, ApiError) for answer in answers) == len(wanted)
            open_ += [(limiter, permit) for permit in got]
            requests += len(got)
        elif what < 0.95:
            chance.shuffle(open_)
            for _ in range(min(len(open_), chance.choice([1, 4, 10]))):
                its, permit = open_.pop()
                served = chance.random() < 0.8
                tokens = chance.randint(0, permit.tokens) * served
                its.tell_settled(permit, tokens, served=served, heard=lambda _: None)
                used += tokens
                requests -= not served
        else:
            limiter._close(limiter.known(7))  # its second is over
        await asyncio.sleep(0)
        check()
    for its, permit in open_:
        its.tell_settled(permit, 1, served=True, heard=lambda _: None)
    used += len(open_)
    for limiter in limiters:
        await settled(limiter)
    await until(lambda: counted(wire) == (requests, used))
    assert not wire.keys("gt:limits:allowed:*")
    assert not wire.keys("gt:limits:open:*")
    assert wire.exists("gt:limits:reserved:7") == 0
    assert {int(wire.get(key)) for key in wire.keys("gt:limits:spent:*")} <= {used}
