"""Processes under test: on which core they run, what they have used, what they hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psutil


class TooFewCores(RuntimeError):
    """One core for the gateway and one for everything else is the least."""


@dataclass(frozen=True, slots=True)
class Cores:
    """`gateway` is what is measured; agent, engine and load share `rest`."""

    gateway: int
    rest: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first two that we may use. Raises `TooFewCores`."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise TooFewCores("this wants two cores")
        return cls(usable[0], usable[1])


@contextlib.contextmanager
def on(*cores: int) -> Iterator[None]:
    """What is started in this block runs on these cores, with all it starts itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Group:
    """Some processes and everything below them."""

    def __init__(self, roots: Iterable[int], *, without: Iterable[int] = ()) -> None:
        self._roots, self._without = list(roots), set(without)

    def members(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(root)
                for each in (process, *process.children(recursive=True)):
                    found[each.pid] = each
        return [process for pid, process in found.items() if pid not in self._without]

    def cpu_seconds(self) -> float:
        """User and system time, to 10 ms."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def rss_mb(self) -> float:
        return self._sum(lambda process: process.memory_info().rss) / 1e6

    def threads(self) -> int:
        return int(self._sum(lambda process: process.num_threads()))

    def open_files(self, ending: str) -> int:
        """Open descriptors of files whose name ends so: each SQLite connection has its database open."""
        return int(
            self._sum(lambda process: sum(file.path.endswith(ending) for file in process.open_files()))
        )

    def _sum(self, of: Callable[[psutil.Process], float]) -> float:
        """Of all that have not gone meanwhile."""
        total = 0.0
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                total += of(process)
        return total
