"""What do idle nodes cost the coordinator? A real cluster on loopback; scripted agents register over HTTP,
keep their leases in Redis, and beat over HTTP, evenly over the interval. Prints the CPU of the web process
and of Redis as shares of a core: with no nodes, with silent ones (leases only), and with heartbeats.

    make bench-fleet            (or: .venv/bin/python -m benchmarks.fleet --nodes 1000)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import django
import httpx
import msgspec
import psutil
import redis

from tests.journeys.cluster import FAST, Cluster

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")
os.environ.setdefault("SECRET_KEY", "benchmarks.fleet")
django.setup()

from tests.nodes.agents import heartbeat, model, registration  # noqa: E402
from worker_agent.contract import HEARTBEAT, REGISTER, Registered, lease_key  # noqa: E402

LEASE_SECONDS = 6


@dataclass
class Agent:
    node: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.node}.{self.secret}", "Content-Type": "application/json"}


def register(client: httpx.Client, token: str, count: int) -> list[Agent]:
    agents = []
    for n in range(count):
        message = registration(token=token, name=f"node-{n}", machine=f"machine-{n}")
        answer = client.post(REGISTER, content=msgspec.json.encode(message))
        if answer.status_code != 200:
            raise SystemExit(f"not registered: {answer.status_code} {answer.text[:300]}")
        told = msgspec.json.decode(answer.content, type=Registered)
        agents.append(Agent(told.node, told.secret))
    return agents


def lease(wire: redis.Redis, agents: list[Agent], over: threading.Event) -> None:
    """Renew everybody's lease every two seconds, as the agents would."""
    while not over.is_set():
        with wire.pipeline(transaction=False) as pipe:
            for agent in agents:
                pipe.set(lease_key(agent.node), "1", ex=LEASE_SECONDS)
            pipe.execute()
        over.wait(2.0)


def beat(client: httpx.Client, agents: list[Agent], interval: float, seconds: float) -> int:
    """Each agent beats once an interval. Returns how many beats were answered."""
    body = msgspec.json.encode(heartbeat(models=[model(ttft_ms=20.0)]))
    begun, step, sent = time.monotonic(), interval / max(1, len(agents)), 0
    while (now := time.monotonic()) < begun + seconds:
        if (early := begun + sent * step - now) > 0:
            time.sleep(early)
        agent = agents[sent % len(agents)]
        answer = client.post(HEARTBEAT, content=body, headers=agent.headers)
        if answer.status_code != 200:
            raise SystemExit(f"a beat was refused: {answer.status_code} {answer.text[:300]}")
        sent += 1
    return sent


class Used:
    """CPU seconds of the web process and of Redis from here on."""

    def __init__(self, web: psutil.Process, wire: redis.Redis) -> None:
        self._web, self._wire = web, wire
        self._at, self._before = time.monotonic(), self._now()

    def _now(self) -> tuple[float, float]:
        info = self._wire.info("cpu")
        return sum(self._web.cpu_times()[:2]), float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def seconds(self) -> tuple[float, float, float]:
        """Of the web process, of Redis, and on the clock."""
        web, broker = self._now()
        return web - self._before[0], broker - self._before[1], time.monotonic() - self._at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="length of each part")
    parser.add_argument("--interval", type=float, default=10, help="seconds between a node's beats")
    chosen = parser.parse_args()
    told: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **dict.fromkeys(FAST, "")) as cluster:
        wire = redis.Redis.from_url(cluster.env["REDIS_URL"])
        web = psutil.Process(cluster.web[0].pid)

        def part(name: str, used: Used, beats: int = 0) -> None:
            mine, broker, clock = used.seconds()
            told[f"{name}_web"], told[f"{name}_redis"] = mine / clock, broker / clock
            line = f"{name:12} web {mine / clock:6.1%} of a core, Redis {broker / clock:6.1%}"
            if beats:
                told["beats_per_s"] = beats / clock
                told["beat_ms"] = (mine / clock - told["silent_web"]) * clock / beats * 1000
                line += f"; {beats / clock:.0f} beats/s, {told['beat_ms']:.1f} ms of the web process each"
            print(line, flush=True)

        used = Used(web, wire)
        time.sleep(chosen.seconds)
        part("no nodes", used)
        said = json.loads(cluster.manage("enrolment_token", "--uses", "0", "--json"))
        with httpx.Client(base_url=cluster.url, timeout=30) as client:
            agents = register(client, said["enrolment_token"], chosen.nodes)
            over = threading.Event()
            leases = threading.Thread(target=lease, args=(wire, agents, over))
            leases.start()
            try:
                time.sleep(1.0)
                used = Used(web, wire)
                time.sleep(chosen.seconds)
                part("silent", used)
                used = Used(web, wire)
                part("beating", used, beat(client, agents, chosen.interval, chosen.seconds))
            finally:
                over.set()
                leases.join()
    print(json.dumps({name: round(value, 4) for name, value in told.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
