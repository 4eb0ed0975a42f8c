"""The world that is broken: two web processes, three nodes, a jobworker, Redis and PostgreSQL, all its own.

It also does what a supervisor does (starts again what has died) and keeps the times of what was done to whom.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gputorrent import ports
from gputorrent.children import Child
from tests import postgres
from tests.journeys.cluster import Cluster

NODES = ("one", "two", "three")
ENGINE = ("--per-second", "25", "--first-seconds", "0.1", "--children")
SLOTS = 4
RESTART_SECONDS = 1.0
RECORD_SECONDS = 1.5
"""How far a record may be behind: 0.25 s by its setting, and what a busy machine adds."""
RECORD_PAUSE_SECONDS = 7.0
"""How long after the database is back the recorder may wait before it tries again."""


@dataclass
class Span:
    """Something was away, frozen or broken from `began` to `ended` (monotonic; None: still)."""

    what: str
    whom: str
    began: float
    ended: float | None = None

    def touches(self, began: float, ended: float) -> bool:
        return self.began <= ended and (self.ended is None or self.ended >= began)


class World:
    """A cluster with the handles that faults need. Use `running`."""

    def __init__(self, cluster: Cluster, database: postgres.Server) -> None:
        self.cluster, self.database = cluster, database
        self.spans: list[Span] = []
        self.webs: dict[int, Child] = {}
        self.agents: dict[str, Child] = {}
        self.unasked: list[str] = []
        """Exits that nobody asked for."""
        self._killed: set[str] = set()
        self._restart_at: dict[str, float] = {}

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[World]:
        """Everything started, every node ready."""
        # What is committed must outlive a killed server; there is no need to outlive the machine.
        with postgres.running(synchronous_commit="on") as database, Cluster(folder, database.url) as cluster:
            world = cls(cluster, database)
            world.webs[cluster.port] = cluster.web[0]
            other = ports.any_free()
            world.webs[other] = cluster.start_web(other)
            for node in NODES:
                # Nodes know one address each; in a real cluster a proxy stands before the web processes.
                url = f"http://127.0.0.1:{other if node == 'two' else cluster.port}"
                world.agents[node] = cluster.start_agent(
                    node, *ENGINE, arguments=("--slots", str(SLOTS), "--coordinator", url)
                )
            cluster.until(lambda: all(map(cluster.serves, NODES)), "every node serves", 40)
            yield world

    # -- who is there ------------------------------------------------------------------------------------

    @property
    def children(self) -> dict[str, Child]:
        webs = {f"web {port}": child for port, child in self.webs.items()}
        return {
            **webs,
            **{f"agent {n}": c for n, c in self.agents.items()},
            "jobworker": self.cluster.jobworker,
        }

    def redis_process(self) -> psutil.Process:
        return psutil.Process(self.cluster.redis.child.pid)

    def database_processes(self) -> list[psutil.Process]:
        """The server first: it starts no more of the others once it is frozen."""
        assert self.database.child is not None
        server = psutil.Process(self.database.child.pid)
        return [server, *server.children()]

    def engine_processes(self, node: str) -> list[psutil.Process]:
        """The engine of a node, then the reaper it runs under; nothing while it is being started."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.agents[node].pid).children(recursive=True):
                line = process.cmdline()
                if "--port" in line:
                    found.append(process)
        return sorted(found, key=lambda p: "reaper.py" in " ".join(p.cmdline()))

    # -- what is done to them ----------------------------------------------------------------------------

    def began(self, what: str, whom: str) -> Span:
        self.spans.append(Span(what, whom, time.monotonic()))
        return self.spans[-1]

    def kill(self, name: str) -> None:
        """SIGKILL; `tend` starts it again."""
        self._killed.add(name)
        self.began("down", name)
        self.children[name].kill()

    def tend(self) -> None:
        """What a supervisor does: start again what has ended, and see when it answers again."""
        now = time.monotonic()
        for name, child in self.children.items():
            if not child.alive:
                if name not in self._restart_at:
                    self._restart_at[name] = now + RESTART_SECONDS
                    if name not in self._killed:
                        self.unasked.append(f"{name} {child.ending()}: {child.output(600).strip()[-300:]}")
                        self.began("down", name)
                elif now >= self._restart_at[name]:
                    del self._restart_at[name]
                    self._killed.discard(name)
                    child.start()
            elif self.down(name) and self._up(name):
                for span in self.spans:
                    if span.what == "down" and span.whom == name and span.ended is None:
                        span.ended = time.monotonic()

    def _up(self, name: str) -> bool:
        kind, _, which = name.partition(" ")
        if kind != "web":
            return True
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(which)), 0.2):
            return True
        return False

    def down(self, name: str) -> bool:
        return any(s.what == "down" and s.whom == name and s.ended is None for s in self.spans)

    # -- what that excuses -------------------------------------------------------------------------------

    def was_down(self, name: str, began: float, ended: float) -> bool:
        """Whether it was dead at some time between (with a moment for the news of it)."""
        return any(s.what == "down" and s.whom == name and s.touches(began - 0.5, ended) for s in self.spans)

    def record_lost(self, name: str, began: float, ended: float) -> bool:
        """Whether a record that changed last between `began` and `ended` may have died, unwritten, with the
        web process `name`: it was killed so soon after, or before the database was back for long enough."""
        outages = [s for s in self.spans if s.whom == "database"]
        for death in self.spans:
            if death.what != "down" or death.whom != name or death.began < began - 0.5:
                continue
            from_when = death.began - RECORD_SECONDS
            for outage in outages:
                if outage.touches(from_when - RECORD_PAUSE_SECONDS, death.began):
                    from_when = min(from_when, outage.began - RECORD_SECONDS)
            if ended >= from_when:
                return True
        return False
