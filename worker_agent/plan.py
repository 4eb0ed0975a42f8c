"""Which engine to start, stop, give up or wait for next. Pure: standings and a clock in, one step out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where an engine stands, as its owner sees it."""

    DOWN = "down"
    LOADING = "loading"
    UP = "up"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Standing:
    """One model: its phase, when its engine failed (monotonic seconds), whether it ever served here."""

    phase: Phase
    wanted: bool = True
    failures: tuple[float, ...] = ()
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """After `failures` within `window` seconds a model is given up; pauses double from `first_pause`."""

    failures: int = 5
    window: float = 600.0
    first_pause: float = 1.0
    most_pause: float = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    model: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """For news, or for `seconds` (None: only for news)."""

    seconds: float | None = None


Step = Start | Stop | GiveUp | Wait


def pause_after(failures: int, limits: Limits) -> float:
    """Seconds to wait after the latest of so many failures in a row."""
    if failures == 0:
        return 0.0
    return min(limits.most_pause, limits.first_pause * 2 ** min(failures - 1, 30))


def next_step(models: Mapping[str, Standing], now: float, limits: Limits) -> Step:
    """The single next step; ask again once it is done or something has changed. First rule that fits:

    1. stop what is up and no longer wanted;
    2. give up a model whose first load failed (it will not load the second time either), or which failed
       too often;
    3. one load at a time, since an engine measures free memory while it loads; in the order given,
       those whose pause is over;
    4. wait.
    """
    for name, standing in models.items():
        if standing.phase is Phase.UP and not standing.wanted:
            return Stop(name)
    down = {name: it for name, it in models.items() if it.phase is Phase.DOWN and it.wanted}
    recent = {name: [at for at in it.failures if now - at < limits.window] for name, it in down.items()}
    for name, standing in down.items():
        if standing.failures and not standing.proven:
            return GiveUp(name, "it does not load")
        if len(recent[name]) >= limits.failures:
            return GiveUp(name, f"it failed {limits.failures} times in {limits.window:g} s")
    if any(it.phase in {Phase.LOADING, Phase.STOPPING} for it in models.values()):
        return Wait()
    due = {name: max(recent[name], default=now) + pause_after(len(recent[name]), limits) for name in down}
    for name, at in due.items():
        if at <= now:
            return Start(name)
    return Wait(min(due.values()) - now) if due else Wait()
