"""A batch of steps leaves the board as the same steps do one by one, and answers the same."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from jobs.board import Board
from jobs.breaker import Verdict
from jobs.errors import NotPermitted
from nodes import view
from tests.jobs.conftest import NODES
from tests.jobs.scripted import ScriptedNode, work
from worker_agent.contract import inbox_key, reply_key

MODELS = ("m", "other")
Step = tuple[Any, ...]


def prepared(wire: Any, slots: int) -> list[ScriptedNode]:
    wire.flushdb()
    wire.set(view.ALIVE, "1")
    wire.set("gt:web:w", "1")
    wire.xadd(reply_key("w"), {"m": b"\x90"})
    wire.hset("leave", "granted", "")
    nodes = [ScriptedNode(wire, name, slots=slots) for name in NODES]
    for name in NODES:
        wire.hset("gt:nodes:slots", f"{name}/other", 1)
    return nodes


def some_steps(chance: random.Random, count: int, faults: bool) -> list[Step]:
    """Steps that a coordinator could ask for: jobs that come, end, are asked about twice, leave."""
    steps: list[Step] = []
    asked: list[tuple[str, str, str]] = []
    for n in range(count):
        kind = chance.choice(["reserve", "reserve", "reserve", "release", "release", "leave", "again"])
        if kind == "reserve":
            model, order = chance.choice(MODELS), tuple(chance.sample(NODES, chance.choice([1, 2, 2])))
            steps.append(
                ("reserve", f"j{n}", model, order, chance.choice(["granted", "granted", "", "refused"]))
            )
            asked += [(f"j{n}", model, node) for node in order]
        elif asked and kind == "release":
            verdict = chance.choice([Verdict.OK, Verdict.NOTHING, *([Verdict.FAULT] * faults)])
            steps.append(("release", *chance.choice(asked), verdict, chance.choice(["", "", "print"])))
        elif asked and kind == "leave":
            steps.append(("leave", chance.choice(asked)[0]))
        elif steps and kind == "again":
            steps.append(chance.choice(steps))
    return steps


async def take(board: Board, step: Step) -> Any:
    kind, job, *rest = step
    if kind == "leave":
        return await board.leave(job)
    if kind == "release":
        model, node, verdict, fingerprint = rest
        return await board.release(node, model, job, 1, verdict, fingerprint)
    model, order, proof = rest
    proven = ("leave", proof) if proof else None
    given = work(job, model=model, reply="w", body=b"x" * (10 * len(job)))
    try:
        return await board.reserve(given, order, tenant=job[-1], wait_seconds=60, proof=proven)
    except NotPermitted:
        return "not permitted"


def dump(wire: Any) -> dict[str, Any]:
    """Everything that the board keeps, but for moments."""
    found: dict[str, Any] = {}
    for key in sorted(k.decode() for k in wire.keys("gt:board:*")):
        if key.startswith("gt:board:slots:"):
            found[key] = {ref: entry.split(b" ")[:3] for ref, entry in wire.hgetall(key).items()}
        elif key == "gt:board:waiting":
            found[key] = set(wire.zrange(key, 0, -1))
        elif wire.type(key) == b"hash":
            found[key] = {field: value for field, value in wire.hgetall(key).items() if field != b"last"}
        elif wire.type(key) == b"set":
            found[key] = wire.smembers(key)
        else:
            found[key] = wire.zrange(key, 0, -1, withscores=True)
    found |= {key.decode(): wire.llen(key) for key in wire.keys("gt:faults:*")}
    found["breakers"] = {place: b.split(b" ")[::2] for place, b in wire.hgetall("gt:breakers").items()}
    found["strikes"] = {name: told.split(b" ")[0] for name, told in wire.hgetall("gt:strikes").items()}
    found["inboxes"] = [[fields for _, fields in wire.xrange(inbox_key(node))] for node in NODES]
    found["told"] = [fields for _, fields in wire.xrange(reply_key("w"))]
    return found


@pytest.mark.parametrize("seed", range(40))
async def test_a_batch_does_what_its_steps_do_one_by_one(wire, board, settings, seed):
    settings.BREAKER_FAULTS = 2
    chance = random.Random(seed)
    steps = some_steps(chance, 40, faults=seed % 2 == 1)
    slots = chance.choice([2, 4, 50])
    prepared(wire, slots)
    one_by_one = [await take(board, step) for step in steps]
    after = dump(wire)
    prepared(wire, slots)
    size = chance.choice([3, 8, 20])
    batches = [steps[start : start + size] for start in range(0, len(steps), size)]
    in_batches = [await asyncio.gather(*(take(board, step) for step in batch)) for batch in batches]
    assert [answer for answers in in_batches for answer in answers] == one_by_one
    assert dump(wire) == after


async def test_a_usual_batch_costs_few_commands_however_many_steps_it_has(wire, board):
    """What a script asks of Redis is most of what Redis spends on a request."""
    prepared(wire, 100)
    steps = [("reserve", f"j{n}", "m", NODES, "granted") for n in range(30)]

    async def spent(steps: list[Step]) -> int:
        before = wire.info("commandstats")
        await asyncio.gather(*(take(board, step) for step in steps))
        after = wire.info("commandstats")
        ours = {name for name in after if name not in {"cmdstat_xadd", "cmdstat_info"}}
        return sum(after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in ours)

    await take(board, ("reserve", "first", "m", NODES, ""))
    assert await spent(steps) < 20
    assert await spent([("release", f"j{n}", "m", NODES[0], Verdict.OK, "") for n in range(30)]) < 20
    assert await board.loads() == {f"{NODES[0]}/m": 1}
