"""Which model to start, wake, put to sleep or stop next.

Pure: standings, a budget and a clock go in, one step comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Phase(Enum):
    """Where an engine stands, as its owner sees it."""

    DOWN = "down"
    LOADING = "loading"  # starting or waking
    UP = "up"
    LEAVING = "leaving"  # stopping or falling asleep
    ASLEEP = "asleep"
    FAILED = "failed"  # given up for a while


class Wish(Enum):
    """Whether a model should be loaded."""

    NONE = "none"
    START = "start"  # from the start list: if there is room beside the others
    LOAD = "load"  # somebody asked, or it had been loaded and crashed: room is made for it


@dataclass(frozen=True, slots=True)
class Standing:
    """One model. Sizes in bytes, times in monotonic seconds."""

    phase: Phase
    wish: Wish = Wish.NONE
    asked_at: float = 0.0
    need: int = 0  # when it is up
    asleep_need: int = 0  # what it keeps when it sleeps
    in_flight: int = 0
    last_used: float = 0.0
    up_since: float = 0.0
    pinned: bool = False
    can_sleep: bool = False
    leave: bool = False  # told to unload
    failures: tuple[float, ...] = ()
    proven: bool = False  # it has served here
    out_of_memory: bool = False  # so its last load ended
    given_up: int = 0  # so many times in a row
    failed_until: float = 0.0

    @property
    def held(self) -> int:
        """Bytes of the budget that are taken, or as good as taken, by this model."""
        if self.phase in {Phase.LOADING, Phase.UP, Phase.LEAVING}:
            return self.need
        return self.asleep_need if self.phase is Phase.ASLEEP else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """After `failures` within `window` seconds a model is given up for `first_rest`, then twice as long, up
    to `most_rest`; pauses after single failures double from `first_pause`. `residence` is how long a model
    stays before another may push it out.
    """

    failures: int = 5
    window: float = 600.0
    first_pause: float = 1.0
    most_pause: float = 60.0
    first_rest: float = 300.0
    most_rest: float = 3600.0
    residence: float = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    model: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    model: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sleep:
    model: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    model: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Give the wish up: there is no room for a model of the start list. It stays on offer."""

    model: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp:
    model: str
    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Forgive:
    """Its rest is over: it may be asked for again."""

    model: str
    why: str = "it may be tried again"


@dataclass(frozen=True, slots=True)
class Wait:
    """For news, or for `seconds` (None: only for news). `why` says what the model `model` waits for.
    `for_work`: the end of some work under way is news, too."""

    seconds: float | None = None
    model: str = ""
    why: str = ""
    for_work: bool = False


Step = Start | Wake | Sleep | Stop | Drop | GiveUp | Forgive | Wait
Models = Mapping[str, Standing]


def pause_after(failures: int, limits: Limits) -> float:
    """Seconds to wait after the latest of so many failures in a row."""
    if failures == 0:
        return 0.0
    return min(limits.most_pause, limits.first_pause * 2 ** min(failures - 1, 30))


def rest_after(given_up: int, limits: Limits) -> float:
    """Seconds of rest when a model is given up for the n-th time in a row (from 0)."""
    return min(limits.most_rest, limits.first_rest * 2 ** min(given_up, 30))


def next_step(models: Models, budget: int, now: float, limits: Limits, *, resting: bool = False) -> Step:
    """The single next step; ask again once it is done or something has changed. First rule that fits:

    1. what is told to leave (everything while `resting`: the owner keeps the GPU) is stopped once it has no
       work;
    2. a model is given up when its first load failed (it will not load the second time either), when it ran
       out of memory, or when it failed too often; after a rest it may be asked for again;
    3. one load at a time, since an engine measures free memory while it loads;
    4. what is wished for is started in the order of asking, where it fits; the first that does not fit has
       room made for it: the least recently used of those that are idle, not pinned and have stayed long
       enough. Only as many go as are needed, and none if all of them would not suffice;
    5. wait.
    """
    step = (
        _leaving(models, resting)
        or _forgiven(models, now)
        or _given_up(models, now, limits)
        or (Wait() if resting else None)
        or (Wait() if any(it.phase is Phase.LOADING for it in models.values()) else None)
        or _wished(models, budget, now, limits)
    )
    if not isinstance(step, Wait):
        return step
    return replace(step, for_work=_work_is_in_the_way(models, step, resting))


def _work_is_in_the_way(models: Models, wait: Wait, resting: bool) -> bool:
    """Of what is to leave, or of anything while a model waits for room. Work that begins later changes
    nothing when it ends: then it is as now."""
    return any(it.in_flight and (wait.model or resting or it.leave) for it in models.values())


def _leaving(models: Models, resting: bool) -> Step | None:
    for name, it in models.items():
        if not (it.leave or resting):
            continue
        why = "it was asked to be unloaded" if it.leave else "the owner keeps the machine"
        if it.phase in {Phase.LOADING, Phase.ASLEEP} or (it.phase is Phase.UP and not it.in_flight):
            return Stop(name, why)
    return None


def _forgiven(models: Models, now: float) -> Step | None:
    over = (name for name, it in models.items() if it.phase is Phase.FAILED and it.failed_until <= now)
    return next((Forgive(name) for name in over), None)


def _given_up(models: Models, now: float, limits: Limits) -> Step | None:
    for name, it in models.items():
        if it.phase is not Phase.DOWN or not it.failures:
            continue
        rest = rest_after(it.given_up, limits)
        if it.out_of_memory:
            return GiveUp(name, "it runs out of memory", rest)
        if not it.proven:
            return GiveUp(name, "it does not load", rest)
        if len(_recent(it, now, limits)) >= limits.failures:
            return GiveUp(name, f"it failed {limits.failures} times in {limits.window:g} s", rest)
    return None


def _recent(it: Standing, now: float, limits: Limits) -> list[float]:
    return [at for at in it.failures if now - at < limits.window]


def _due(it: Standing, now: float, limits: Limits) -> float:
    """When it may be started, after its failures."""
    recent = _recent(it, now, limits)
    return max(recent, default=now) + pause_after(len(recent), limits)


def _wished(models: Models, budget: int, now: float, limits: Limits) -> Step:
    wished = [
        (name, it)
        for name, it in models.items()
        if it.phase in {Phase.DOWN, Phase.ASLEEP} and it.wish is not Wish.NONE and not it.leave
    ]
    wished.sort(key=lambda pair: pair[1].asked_at)  # stable: else in the order given
    free = budget - sum(it.held for it in models.values())
    coming = sum(
        it.need - (it.asleep_need if it.can_sleep else 0)
        for it in models.values()
        if it.phase is Phase.LEAVING
    )
    blocked = Wait()
    times = [it.failed_until for it in models.values() if it.phase is Phase.FAILED]
    for name, it in wished:
        due = _due(it, now, limits)
        if due > now:
            times.append(due)
            continue
        short = min(it.need, budget) - it.held - free
        if short <= 0:
            why = "it was asked for" if it.wish is Wish.LOAD else "it is on the start list"
            return Wake(name, why) if it.phase is Phase.ASLEEP else Start(name, why)
        if coming:
            blocked = blocked if blocked.model else Wait(model=name, why="another model is leaving")
        elif it.wish is Wish.START:
            return Drop(name, "there is no room for it beside the others; it is loaded when asked for")
        elif not blocked.model:  # only the first in line makes room; the others go where they fit
            step = _make_room(models, name, short, now, limits)
            if not isinstance(step, Wait):
                return step
            blocked = step
            if step.seconds is not None:
                times.append(now + step.seconds)
    seconds = max(0.0, min(times) - now) if times else None
    return Wait(seconds, blocked.model, blocked.why)


def _make_room(models: Models, wanted: str, short: int, now: float, limits: Limits) -> Step:
    """Free `short` bytes for `wanted`, one step at a time; or wait for what stands in the way."""
    others = {name: it for name, it in models.items() if name != wanted and it.held}
    movable = {
        name: it
        for name, it in others.items()
        if it.phase is Phase.ASLEEP or (it.phase is Phase.UP and not it.in_flight and not it.pinned)
    }
    stayed = {
        name: it
        for name, it in movable.items()
        if it.phase is Phase.ASLEEP or it.up_since + limits.residence <= now
    }
    for napping in (True, False):  # sleeping first, since waking is quick; stopping where that is too little
        if chosen := _least_recently_used(stayed.items(), short, napping):
            name = chosen[0]
            why = f"room is needed for {wanted}"
            return Sleep(name, why) if napping and _naps(models[name]) else Stop(name, why)
    if sum(it.held for it in movable.values()) >= short:
        young = (it.up_since + limits.residence for it in movable.values() if it.phase is Phase.UP)
        later = min((at for at in young if at > now), default=now)
        return Wait(later - now, wanted, "the models in its way were loaded a moment ago")
    busy = ", ".join(name for name, it in others.items() if it.in_flight)
    if busy:
        return Wait(None, wanted, f"the models in its way have work: {busy}")
    held = ", ".join(name for name, it in others.items() if it.pinned)
    return Wait(None, wanted, f"the models in its way are pinned: {held}")


def _naps(it: Standing) -> bool:
    return it.phase is Phase.UP and it.can_sleep


def _least_recently_used(candidates: Iterable[tuple[str, Standing]], short: int, napping: bool) -> list[str]:
    """Enough of them to free `short` bytes, none too many, oldest use first; empty if all would not do."""

    def frees(it: Standing) -> int:
        return it.held - it.asleep_need if napping and _naps(it) else it.held

    chosen: dict[str, int] = {}
    for name, it in sorted(candidates, key=lambda pair: pair[1].last_used):
        if sum(chosen.values()) >= short:
            break
        if frees(it) > 0:
            chosen[name] = frees(it)
    if sum(chosen.values()) < short:
        return []
    for name in reversed(list(chosen)):  # a large one may have made smaller ones needless
        if sum(chosen.values()) - chosen[name] >= short:
            del chosen[name]
    return list(chosen)
