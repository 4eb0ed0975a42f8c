"""A batch of admissions and settlements counts as the same do one by one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from api.authentication import Caller, Limits
from api.errors import ApiError
from api.limits import Limiter, Permit
from gputorrent.redis import Pipe
from jobs.mailbox import web_key
from tests.api.test_limits import asked, spent_now

_LIMITS = [
    Limits(),
    Limits(requests_per_minute=4),
    Limits(tokens_per_minute=450),
    Limits(concurrency=3),
    Limits(tokens_per_day=500),
    Limits(tokens_per_month=700, spent=spent_now(0, 230)),
    Limits(concurrency=4, requests_per_minute=6, tokens_per_minute=900, tokens_per_day=900),
]


class Fixed(Limiter):
    """Gives permits names that are the same each time."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe, "web")
        self.made: list[Permit] = []

    def admission(self, key: int, of_key: Limits, answer: int, *, deferred: bool) -> asyncio.Future[Any]:
        name = f"permit{len(self.made)}"
        permit = Permit(self, key, name, waits=not deferred, limits=of_key, tokens=10 + answer)
        self.made.append(permit)
        return self._script.ask(*self._question(permit))


def some_steps(chance: random.Random, count: int) -> list[tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = []
    admitted = 0
    for _ in range(count):
        if admitted and chance.random() < 0.4:
            served = chance.random() < 0.8
            steps.append(
                ("settle", chance.randrange(admitted), chance.choice([0, 7, 40, 300]) * served, served)
            )
        else:
            steps.append(("admit", chance.choice([1, 1, 2]), chance.choice([30, 90]), chance.random() < 0.2))
            admitted += 1
    return steps


def begun(limiter: Fixed, step: tuple[Any, ...], by_key: dict[int, Limits]) -> asyncio.Future[Any]:
    if step[0] == "settle":
        _, number, tokens, served = step
        return limiter.settle_soon(limiter.made[number], tokens, served=served)
    _, key, answer, deferred = step
    return limiter.admission(key, by_key[key], answer, deferred=deferred)


def dump(wire: Any) -> dict[str, Any]:
    """Everything that is counted, but for moments."""
    found: dict[str, Any] = {}
    for key in sorted(k.decode() for k in wire.keys("gt:limits:*")):
        if wire.type(key) == b"string":
            found[key] = wire.get(key)
            continue
        have = {field.decode(): value.decode() for field, value in wire.hgetall(key).items()}
        if ":window:" in key:
            sums = {
                kind: sum(int(v) for f, v in have.items() if f[0] == kind and f[1:].isdigit())
                for kind in "rt"
            }
            assert sums == {kind: int(have.get(kind, 0)) for kind in "rt"}
            found[key] = sums
        else:
            found[key] = {permit: entry.split()[-2] for permit, entry in have.items()}
    assert all(wire.ttl(key) > 0 for key in wire.keys("gt:limits:*"))
    return found


@pytest.mark.parametrize("seed", range(24))
async def test_a_batch_counts_what_its_steps_count_one_by_one(wire, pipe, seed):
    chance = random.Random(seed)
    by_key = {1: chance.choice(_LIMITS), 2: chance.choice(_LIMITS)}
    steps, seen = some_steps(chance, 40), []
    for size in (1, chance.choice([3, 8, 20])):
        wire.flushdb()
        wire.set(web_key("web"), "1")
        limiter = Fixed(pipe)
        answers = []
        for start in range(0, len(steps), size):
            batch = steps[start : start + size]
            answers += await asyncio.gather(*[begun(limiter, step, by_key) for step in batch])
        # The times until something is whole again may differ by what the steps took.
        seen.append(([a if isinstance(a, int) else a[:3] for a in answers], dump(wire)))
    assert seen[0] == seen[1]


async def test_who_is_settled_first_makes_room_within_the_same_batch(wire, pipe):
    wire.set(web_key("web"), "1")
    limiter, one = Limiter(pipe, "web"), Limits(concurrency=1)
    who = Caller(7, "ann", False, 0.0, limits=one)
    first = await limiter.admit(who, asked())
    assert first
    limiter.settle_soon(first, 5, served=True)
    second, third = limiter.ask(who, one, asked()), limiter.ask(who, one, asked())
    await second.granted()
    with pytest.raises(ApiError):
        await third.granted()


async def test_a_usual_batch_costs_few_commands_however_many_steps_it_has(wire, pipe):
    wire.set(web_key("web"), "1")
    limiter = Limiter(pipe, "web")
    some = Limits(concurrency=1000, requests_per_minute=10_000, tokens_per_minute=10**9)
    who = Caller(7, "ann", False, 0.0, limits=some)
    await limiter.admit(who, asked())

    def spent() -> int:
        told = wire.info("commandstats")
        return sum(told[name]["calls"] for name in told if name != "cmdstat_info")

    before = spent()
    permits = [limiter.ask(who, some, asked()) for _ in range(30)]
    await asyncio.gather(*(permit.granted() for permit in permits))
    between = spent()
    await asyncio.gather(*(limiter.settle_soon(permit, 5, served=True) for permit in permits))
    assert between - before < 20
    assert spent() - between < 20
