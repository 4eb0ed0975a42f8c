"""Whether an engine that answers /health really works: makes tokens, and lets go of what was cut off.

An engine can be wedged for hours with a healthy /health. Signs of life are tokens of any request, answers,
and the step counters of its /metrics. Silence makes it suspect; only a canary (one token asked for) that gets
none, or a request that has waited out its limit in complete silence, condemns it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from worker_agent.meter import EngineLoad
from worker_agent.serving import Pulse


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds. `idle`: an engine without work is asked for a token so often (0: never)."""

    canary: float = 30.0
    abort: float = 10.0
    idle: float = 60.0


class Verdict(Enum):
    WELL = "well"
    SUSPECT = "suspect"  # ask for a token
    HUNG = "hung"
    KEEPS_ABORTED = "keeps aborted"


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of an engine; seconds."""

    in_flight: int
    silence: float  # since the last sign of life, while it had something to do
    lifeless: float  # since the last sign of life
    idle: float  # since the last request ended
    overdue: float | None = None  # the limit that a request has waited out
    unconfirmed_abort: bool = False


def judge(signs: Signs, patience: Patience) -> Verdict:
    """Pure. An engine with good requests in it is never condemned for what it does with cut-off ones."""
    if signs.overdue is not None:
        return Verdict.HUNG if signs.lifeless >= signs.overdue else Verdict.SUSPECT
    if signs.in_flight:
        return Verdict.SUSPECT if signs.silence >= patience.canary else Verdict.WELL
    if signs.unconfirmed_abort and signs.idle >= patience.abort:
        return Verdict.KEEPS_ABORTED
    if patience.idle and min(signs.silence, signs.idle) >= patience.idle:
        return Verdict.SUSPECT
    return Verdict.WELL


async def until_hung(
    pulse: Pulse,
    patience: Patience,
    *,
    look: Callable[[], Awaitable[EngineLoad | None]],
    canary: Callable[[float], Awaitable[bool]],
    only_by_steps: bool = False,
) -> str:
    """Watch one engine; returns why it has to be ended.

    `look` reads its /metrics (None: no answer); `canary` asks for one token within so many seconds. With
    `only_by_steps` an engine whose metrics count no steps is never condemned: a server that takes one request
    at a time is silent, and its canary waits, for as long as somebody's long answer takes.
    """
    pulse.fresh()
    steps: float | None = None
    tick = min(1.0, patience.canary / 4, patience.abort / 4)

    async def looked() -> None:
        nonlocal steps
        if (load := await look()) is None:
            return
        if steps is not None and load.steps != steps:
            pulse.sign()
        steps = load.steps
        if load.running + load.waiting == 0:
            pulse.unconfirmed_abort = False

    while True:
        await pulse.doubted(tick)
        if pulse.in_flight or pulse.unconfirmed_abort:
            await looked()
        now = time.monotonic()
        signs = Signs(
            pulse.in_flight,
            now - max(pulse.last_sign, pulse.busy_since),
            now - pulse.last_sign,
            now - pulse.idle_since,
            pulse.overdue,
            pulse.unconfirmed_abort,
        )
        pulse.overdue = None
        if only_by_steps and not steps:
            continue
        match judge(signs, patience):
            case Verdict.HUNG:
                return f"it makes no tokens: a request waited {signs.overdue:g} s in complete silence"
            case Verdict.KEEPS_ABORTED:
                return f"it goes on with requests that were cut off {signs.idle:.0f} s ago"
            case Verdict.SUSPECT:
                if await canary(patience.canary):
                    pulse.sign()
                    continue
                await looked()
                if pulse.last_sign < now:
                    return f"it makes no tokens: a canary got none within {patience.canary:g} s"
            case Verdict.WELL:
                pass
