"""How long until all is well again? Breaks one part at a time of a real cluster (with the stand-in engine, at
the default settings) and prints, in seconds, when the caller of a running stream was told and when the next
request was answered (*: an asynchronous job sent meanwhile had its result).

    make bench-recovery            (or: .venv/bin/python -m benchmarks.recovery [FAULT ...])
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from gputorrent import ports
from tests.journeys.cluster import FAST, MODEL, Cluster, events
from tests.postgres import Server, new_database, running

SLOW = ("--per-second", "5", "--children")


@dataclass
class Run:
    """One fault on one cluster. Times count from `broken`."""

    cluster: Cluster
    postgres: Server | None = None
    broken: float = 0.0
    told: float | None = None
    how: str = ""
    lines: int = 0
    job: str = ""
    _stream: threading.Thread | None = None
    _first: threading.Event = field(default_factory=threading.Event)

    def stream(self, url: str = "") -> None:
        """Begin a long stream in the background; returns once its first token is there."""
        self._stream = threading.Thread(target=self._read, args=(url or self.cluster.url,))
        self._stream.start()
        if not self._first.wait(20):
            raise SystemExit("the stream did not begin")

    def _read(self, url: str) -> None:
        body = {"model": MODEL, "prompt": "on and on", "max_tokens": 1500, "stream": True}
        last = None
        try:
            with (
                httpx.Client(timeout=120, headers=self.cluster.headers) as client,
                client.stream("POST", f"{url}/v1/completions", json=body) as answer,
            ):
                for line in answer.iter_lines():
                    if not self.job and (found := events([line])):
                        self.job = str(found[0]["id"])
                    self._first.set()
                    self.lines += 1
                    last = line or last
        except httpx.HTTPError as e:
            last = type(e).__name__
        self.told = time.monotonic()
        seen = events([last or ""])
        self.how = self.how or (
            seen[0]["error"]["message"] if seen and isinstance(seen[0], dict) else str(last)
        )

    def now(self) -> None:
        """The fault happens here."""
        self.broken = time.monotonic()

    def since(self) -> float:
        """Seconds since the fault."""
        return time.monotonic() - self.broken

    def database(self) -> Server:
        if self.postgres is None:
            raise RuntimeError("this fault has no database of its own")
        return self.postgres

    def wait_told(self) -> float:
        if self._stream is None:
            raise RuntimeError("no stream was begun")
        self._stream.join(120)
        return (self.told or time.monotonic()) - self.broken

    def going_on(self) -> bool:
        """Whether the stream still gets tokens."""
        before = self.lines
        time.sleep(3)
        return self.lines > before and self.told is None

    def served(self) -> float:
        """When a new request was answered, tried ten times a second."""
        while time.monotonic() - self.broken < 120:
            with contextlib.suppress(httpx.HTTPError):
                if self.cluster.chat("anyone", max_tokens=1).status_code == 200:
                    return time.monotonic() - self.broken
            time.sleep(0.1)
        return float("inf")

    def deferred(self) -> float:
        """When an asynchronous job was accepted and had its result, tried ten times a second."""
        body = {"model": MODEL, "prompt": "later", "max_tokens": 1}
        job = ""
        while time.monotonic() - self.broken < 120:
            with contextlib.suppress(httpx.HTTPError):
                if not job and (accepted := self.cluster.post("/jobs", body, timeout=5)).status_code == 202:
                    job = str(accepted.json()["id"])
                if job and self.cluster.job(job).get("status") == "completed":
                    return time.monotonic() - self.broken
            time.sleep(0.1)
        return float("inf")


def engine(cluster: Cluster, name: str) -> psutil.Process:
    """The process that listens on the engine's port."""
    for process in cluster.processes(name):
        with contextlib.suppress(psutil.Error):
            if "--port" in process.cmdline() and "reaper.py" not in " ".join(process.cmdline()):
                return process
    raise SystemExit("no engine found")


def engine_killed(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    engine(run.cluster, "one").kill()
    return run.wait_told(), run.served()


def engine_hangs(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    engine(run.cluster, "one").suspend()
    return run.wait_told(), run.served()


def agent_killed(run: Run) -> tuple[float | None, float]:
    agent = run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    agent.kill()
    told = run.wait_told()
    run.cluster.start_agent("one", *SLOW)
    return told, run.served()


def one_of_two_agents_killed(run: Run) -> tuple[float | None, float]:
    agent = run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.cluster.agent_ready("two", *SLOW)
    run.now()
    agent.kill()
    return run.wait_told(), run.served()


def agent_frozen(run: Run) -> tuple[float | None, float]:
    agent = run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    os.kill(agent.pid, signal.SIGSTOP)
    told = run.wait_told()
    os.kill(agent.pid, signal.SIGCONT)
    return told, run.served()


def agent_restarted(run: Run) -> tuple[float | None, float]:
    agent = run.cluster.agent_ready("one")
    run.now()
    agent.stop()
    run.cluster.start_agent("one")
    return None, run.served()


def redis_emptied(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    run.cluster.redis.kill()
    run.cluster.redis.start()
    served = run.served()
    run.how = "it went on" if run.going_on() else run.how
    return None, served


def web_killed(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    run.cluster.web[0].kill()
    run.cluster.start_web()
    return run.wait_told(), run.served()


def web_of_two_killed(run: Run) -> tuple[float | None, float]:
    port = ports.any_free()
    second = run.cluster.start_web(port)
    run.cluster.agent_ready("one", *SLOW)
    run.stream(f"http://127.0.0.1:{port}")
    run.cluster.until(lambda: run.cluster.job(run.job).get("status") == "running", "it is recorded", 10)
    run.now()
    second.kill()
    told, served = run.wait_told(), run.served()
    run.cluster.job_ended(run.job, 60)
    recorded = time.monotonic() - run.broken
    run.cluster.until(lambda: run.cluster.slots_held() == 0, "its slot is back", 60)
    run.how = f"connection closed; recorded after {recorded:.1f} s, slot back by {run.since():.1f} s"
    return told, served


def jobworker_killed(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one")
    run.now()
    run.cluster.jobworker.kill()
    run.cluster.start_jobworker()
    return None, run.deferred()


def redis_frozen(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    os.kill(run.cluster.redis.child.pid, signal.SIGSTOP)
    time.sleep(10)
    os.kill(run.cluster.redis.child.pid, signal.SIGCONT)
    served = run.served()
    run.how = "it went on" if run.going_on() else run.how
    return None, served


def postgres_restarted(run: Run) -> tuple[float | None, float]:
    server = run.database()
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.now()
    server.stop()
    server.start_again()
    return None, _after_an_outage(run)


def postgres_frozen(run: Run) -> tuple[float | None, float]:
    server = run.database()
    assert server.child is not None
    processes = [psutil.Process(server.child.pid)]
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    processes += processes[0].children(recursive=True)
    run.now()
    for process in processes:
        process.suspend()
    time.sleep(10)
    for process in processes:
        process.resume()
    return None, _after_an_outage(run)


def _after_an_outage(run: Run) -> float:
    served = run.deferred()
    run.how = "it went on" if run.going_on() else run.how
    return served


def node_revoked(run: Run) -> tuple[float | None, float]:
    run.cluster.agent_ready("one", *SLOW)
    run.stream()
    run.cluster.agent_ready("two", *SLOW)
    run.now()
    run.cluster.manage("node", "revoke", "one")
    return run.wait_told(), run.served()


FAULTS: list[tuple[str, Callable[[Run], tuple[float | None, float]]]] = [
    ("engine killed", engine_killed),
    ("engine hangs, /health too", engine_hangs),
    ("agent killed, then started again", agent_killed),
    ("one of two agents killed", one_of_two_agents_killed),
    ("agent frozen, then thawed", agent_frozen),
    ("agent restarted in good order", agent_restarted),
    ("Redis killed, back empty", redis_emptied),
    ("Redis frozen for 10 s", redis_frozen),
    ("web process killed and restarted", web_killed),
    ("one of two web processes killed", web_of_two_killed),
    ("jobworker killed and restarted (*)", jobworker_killed),
    ("PostgreSQL restarted (*)", postgres_restarted),
    ("PostgreSQL frozen for 10 s (*)", postgres_frozen),
    ("node revoked (with manage.py)", node_revoked),
]


def main() -> int:
    chosen = sys.argv[1:]
    print(f"{'fault':36} {'caller told':>12} {'served again':>13}  how the running stream ended", flush=True)
    for name, fault in FAULTS:
        if chosen and fault.__name__ not in chosen:
            continue
        with contextlib.ExitStack() as held:
            folder = held.enter_context(tempfile.TemporaryDirectory())
            server = (
                held.enter_context(running(synchronous_commit="on")) if "postgres" in fault.__name__ else None
            )
            url = new_database(server.url) if server else ""
            cluster = held.enter_context(Cluster(Path(folder), url, **dict.fromkeys(FAST, "")))
            run = Run(cluster, server)
            told, served = fault(run)
        said = f"{told:10.1f} s" if told is not None else "-"
        print(f"{name:36} {said:>12} {served:11.1f} s  {run.how}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
