"""Faults: each breaks something now and says for how long, and how it is put right (if anyone must)."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from gputorrent.children import Child
from tests.chaos.world import Span, World

Undo = Callable[[], None]


class NothingThere(Exception):
    """Whom it is meant for is away just now; another time."""


@dataclass
class _Pending:
    due: float
    span: Span
    undo: Undo
    whom: str


class Faults:
    """Draws faults from the seed, every kind before any comes again, and lets two overlap."""

    def __init__(self, world: World, seed: int, say: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._world, self._say = world, say
        self._random = random.Random(seed)
        self._pending: list[_Pending] = []
        self._deck: list[str] = []

    @property
    def under_way(self) -> bool:
        return bool(self._pending)

    def begin(self) -> None:
        """Break something."""
        if not self._deck:
            self._deck = list(KINDS)
            self._random.shuffle(self._deck)
        for name in self._deck:
            whom, begin = KINDS[name]
            targets = [t for t in whom(self._world) if not self._busy(t)]
            if not targets:
                continue
            target = self._random.choice(targets)
            span = self._world.began(name, target)
            try:
                seconds, undo = begin(self._world, target, self._random)
            except (NothingThere, psutil.Error):
                self._world.spans.remove(span)
                continue
            self._deck.remove(name)
            self.counts[name] += 1
            self._pending.append(_Pending(time.monotonic() + seconds, span, undo, target))
            self._say(f"{name}: {target}" + (f", {seconds:.1f} s" if seconds else ""))
            return

    def tend(self, everything: bool = False) -> None:
        """Put right what is due."""
        for pending in [p for p in self._pending if everything or p.due <= time.monotonic()]:
            self._pending.remove(pending)
            pending.undo()
            pending.span.ended = time.monotonic()

    def _busy(self, target: str) -> bool:
        return self._world.down(target) or any(p.whom == target for p in self._pending)


def _nothing() -> None:
    pass


# -- processes that the supervisor starts again ----------------------------------------------------------


def _kill(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    world.kill(target)
    return 0.0, _nothing


def _freeze(child: Child, seconds: float) -> tuple[float, Undo]:
    process = psutil.Process(child.pid)
    process.send_signal(signal.SIGSTOP)

    def thaw() -> None:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)

    return seconds, thaw


def _freeze_agent(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    return _freeze(world.children[target], draw.uniform(0.5, 6.0))  # a lease lasts 1.5 s


def _freeze_web(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    return _freeze(world.children[target], draw.uniform(0.5, 5.0))  # its sign of life lasts 10 s


def _freeze_jobworker(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    return _freeze(world.children[target], draw.uniform(1.0, 6.0))


# -- engines ---------------------------------------------------------------------------------------------


def _kill_engine(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    processes = world.engine_processes(target.removeprefix("engine "))
    if len(processes) < 2:
        raise NothingThere
    # Sometimes it is the reaper above it, which takes the engine along.
    processes[0 if draw.random() < 0.75 else 1].kill()
    return 2.0, _nothing


def _freeze_engine(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    processes = world.engine_processes(target.removeprefix("engine "))
    if len(processes) < 2:
        raise NothingThere
    engine = processes[0]
    engine.suspend()

    def thaw() -> None:
        with contextlib.suppress(psutil.Error):  # its agent may have killed it
            engine.resume()

    return draw.uniform(0.5, 8.0), thaw  # the next token is waited for 4 s


# -- Redis and PostgreSQL --------------------------------------------------------------------------------


def _empty_redis(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    world.cluster.redis.kill()

    def back() -> None:
        before = world.cluster.redis.port
        world.cluster.redis.start()
        if world.cluster.redis.port != before:
            raise RuntimeError("somebody took the port of Redis meanwhile: run it again")

    return draw.uniform(0.2, 4.0), back


def _freeze_redis(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    process = world.redis_process()
    process.suspend()
    return draw.uniform(0.5, 6.0), process.resume  # an answer is waited for 2.5 s


def _restart_database(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    world.database.stop()
    return draw.uniform(0.2, 4.0), world.database.start_again


def _freeze_database(world: World, target: str, draw: random.Random) -> tuple[float, Undo]:
    processes = world.database_processes()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()

    def thaw() -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.resume()

    return draw.uniform(0.5, 6.0), thaw


def _agents(world: World) -> list[str]:
    return [f"agent {name}" for name in world.agents]


def _engines(world: World) -> list[str]:
    return [f"engine {name}" for name in world.agents if not world.down(f"agent {name}")]


def _webs(world: World) -> list[str]:
    return [f"web {port}" for port in world.webs]


KINDS: dict[
    str,
    tuple[Callable[[World], list[str]], Callable[[World, str, random.Random], tuple[float, Undo]]],
] = {
    "agent killed": (_agents, _kill),
    "agent frozen": (_agents, _freeze_agent),
    "engine killed": (_engines, _kill_engine),
    "engine frozen": (_engines, _freeze_engine),
    "web process killed": (_webs, _kill),
    "web process frozen": (_webs, _freeze_web),
    "jobworker killed": (lambda world: ["jobworker"], _kill),
    "jobworker frozen": (lambda world: ["jobworker"], _freeze_jobworker),
    "Redis restarted empty": (lambda world: ["redis"], _empty_redis),
    "Redis frozen": (lambda world: ["redis"], _freeze_redis),
    "PostgreSQL restarted": (lambda world: ["database"], _restart_database),
    "PostgreSQL frozen": (lambda world: ["database"], _freeze_database),
}
