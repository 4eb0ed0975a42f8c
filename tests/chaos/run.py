"""One run: start the world, load it, break it, let it settle, judge."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import checks, metrics, residue
from tests.chaos.checks import Check
from tests.chaos.faults import Faults
from tests.chaos.load import JOB_SECONDS, Load
from tests.chaos.table import report
from tests.chaos.world import World

SETTLE_SECONDS = 75.0
_STEP_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """How much of it: at least `jobs` accepted and `faults` done, at most `seconds` of load."""

    jobs: int
    faults: int
    seconds: float
    seed: int
    pause: tuple[float, float] = (2.0, 6.0)
    """Seconds from one fault to the next: shorter than most recoveries."""


LONG = Plan(jobs=2000, faults=36, seconds=900.0, seed=0)
SHORT = Plan(jobs=250, faults=12, seconds=120.0, seed=4, pause=(1.5, 4.0))
"""Each kind of fault once."""


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> tuple[bool, str]:
    """Whether all checks hold, and the report."""
    say(f"seed {plan.seed}; logs in {folder}")
    began = time.monotonic()
    with World.running(folder) as world:
        say(f"the world is up after {time.monotonic() - began:.0f} s")

        def tell(what: str) -> None:
            say(f"{time.monotonic() - began:6.1f} s  {what}")

        load = Load(list(world.webs), world.cluster.key, plan.seed)
        faults = Faults(world, plan.seed, tell)
        before = residue.clients(world)
        load.start()
        try:
            _break(plan, world, load, faults)
        finally:
            load.stop()
            faults.tend(everything=True)
        tell(f"load and faults end, {load.accepted} jobs accepted; what is under way may end")
        ended = _wait(world, load)
        tell("it settles")
        left = _settle(world, before)
        tell("settled" if not any(left.values()) else "it has not settled")
        found = _judge(plan, world, load, faults, left, ended)
        _keep(world, load, folder)
        text = report(faults.counts, load.calls, found, time.monotonic() - began)
        return not any(check.wrong for check in found), text


def _break(plan: Plan, world: World, load: Load, faults: Faults) -> None:
    draw = random.Random(plan.seed + 1)
    end = time.monotonic() + plan.seconds
    due = time.monotonic() + 3.0
    while time.monotonic() < end:
        world.tend()
        faults.tend()
        if time.monotonic() >= due and faults.counts.total() < plan.faults:
            faults.begin()
            due = time.monotonic() + draw.uniform(*plan.pause)
        if faults.counts.total() >= plan.faults and not faults.under_way and load.accepted >= plan.jobs:
            return
        time.sleep(_STEP_SECONDS)


def _wait(world: World, load: Load) -> bool:
    end = time.monotonic() + JOB_SECONDS + 10
    while not load.join(_STEP_SECONDS):
        world.tend()
        if time.monotonic() > end:
            return False
    return True


def _settle(world: World, before: residue.Clients) -> dict[str, list[str]]:
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        world.tend()
        left = residue.look(world, before)
        open_rows = [r["id"] for r in checks.ledger(world).values() if r["state"] not in checks.TERMINAL]
        if (not any(left.values()) and not open_rows) or time.monotonic() > end:
            return left
        time.sleep(0.5)


def _keep(world: World, load: Load, folder: Path) -> None:
    """Leave beside the logs what the judgement was made of, for whoever looks for the cause."""
    with (folder / "calls.txt").open("w") as file:
        file.writelines(f"{call} {call.problems or ''}\n" for call in load.calls)
    with (folder / "ledger.txt").open("w") as file:
        for row in checks.ledger(world).values():
            file.write(f"{checks.brief(row)} {row['error_message']}\n")
        for row in checks.attempts(world):
            file.write(f"attempt {row['job_id']}:{row['number']} node={row['node_id']} {row['outcome']} ")
            file.write(f"{row['claimed_at'].time()} {row['placed_at'] and row['placed_at'].time()} ")
            file.write(f"{row['finished_at'] and row['finished_at'].time()} {row['reason']}\n")


def _judge(
    plan: Plan, world: World, load: Load, faults: Faults, left: dict[str, list[str]], ended: bool
) -> list[Check]:
    calls = list(load.calls)
    hang = Check("every call came to an end", len(calls))
    hang.wrong = [str(call) for call in calls if not call.ended] if not ended else []
    exits = Check("nothing exits by itself", len(world.children), wrong=list(world.unasked))
    rest = [Check(name, 1, wrong=what) for name, what in left.items()]
    rows = checks.ledger(world)
    return [
        *checks.degenerate(calls, plan.jobs, faults.counts.total(), plan.faults),
        hang,
        *checks.clients(world, calls),
        *checks.agreement(world, calls, rows),
        checks.tried(world, calls, rows, checks.attempts(world)),
        metrics.agreement(world, metrics.read(world), rows),
        *rest,
        exits,
    ]
