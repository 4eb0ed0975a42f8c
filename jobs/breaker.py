"""What an attempt's end says of the place (a model on a node) it ran on, and the breakers that follow. Pure.

    closed --more than 5 faults in 60 s--> open --10 s--> half open --success--> closed
                                            ^                 |
                                            +--fault, 2x the time, 120 s at most

`breaker.lua` keeps the state, in the step that gives the attempt's slot back, so the count is exact however
many processes there are. A caller's mistake, back-pressure, a drain, a cancellation and what the wire lost
say nothing. When Redis loses them, all breakers are closed, which does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from jobs.interactive import NODE_LOST
from worker_agent.contract import Done, Failed, Outcome


class Verdict(StrEnum):
    """What one attempt says of its place."""

    NOTHING = ""
    OK = "ok"
    FAULT = "fault"
    DOWN = "down"
    """A fault that ends, or holds up, all work there at once: what was under way together counts once, or a
    single crash of an engine with a full batch would open its breaker."""


_VERDICTS: Final = {
    "done": Verdict.OK,
    Outcome.ENGINE_ERROR: Verdict.FAULT,
    Outcome.ENGINE_UNREACHABLE: Verdict.DOWN,
    Outcome.ENGINE_DIED: Verdict.DOWN,
    Outcome.FIRST_TOKEN_TIMEOUT: Verdict.DOWN,
    Outcome.STALLED: Verdict.DOWN,
    NODE_LOST: Verdict.DOWN,
}


def verdict(outcome: str) -> Verdict:
    """What an outcome (`Outcome`, one of `jobs.interactive`, ``done``, ``rejected``) says of the place."""
    return _VERDICTS.get(outcome, Verdict.NOTHING)


def of_reply(reply: Done | Failed | None) -> Verdict:
    """The same for what a node reports of an attempt; None says only that it has begun."""
    if isinstance(reply, Done):
        return Verdict.OK if reply.status < 400 else Verdict.NOTHING
    return verdict(reply.outcome) if reply else Verdict.NOTHING


class State(StrEnum):
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """One that is not closed. `until` (seconds since the epoch, by Redis's clock): when a probe may go."""

    node: str
    model: str
    state: State
    faults: int
    until: float
    opening: int  # 1, 2, ... without a success in between

    @property
    def place(self) -> str:
        return f"{self.node}/{self.model}"


def read(place: str, record: str, wait_ms: int) -> Breaker:
    """A breaker as `breaker.lua` keeps it; `wait_ms` until it may be probed."""
    node, _, model = place.partition("/")
    opening, until_ms, faults, _ = record.split(" ")
    state = State.OPEN if wait_ms > 0 else State.HALF_OPEN
    return Breaker(node, model, state, int(faults), int(until_ms) / 1000, int(opening))


def changes(before: Mapping[str, Breaker], after: Mapping[str, Breaker]) -> list[str]:
    """What happened to the breakers between two looks (place -> breaker), a line for the log each."""
    lines = []
    for place, now in after.items():
        was = before.get(place)
        where = f"node={now.node} model={now.model}"
        if was is None or was.opening < now.opening:
            lines.append(f"breaker open {where} faults={now.faults} opening={now.opening}")
        if now.state == State.HALF_OPEN and (was is None or was.state == State.OPEN):
            lines.append(f"breaker half open {where}")
    lines += [f"breaker closed node={b.node} model={b.model}" for p, b in before.items() if p not in after]
    return lines
