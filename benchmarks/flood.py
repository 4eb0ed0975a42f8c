"""Does one key that floods the cluster keep another waiting? A sends 500 requests at once, then B sends 10.
Prints how long each waited for a slot, beside what B alone would have had with half of the slots.

    make bench-flood            (or: .venv/bin/python -m benchmarks.flood)

A real cluster on loopback, with the stand-in engine: 8 slots, 0.2 s a request. Exits with 1 if the 95th
percentile of B's waits is more than twice what it has alone.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.journeys.cluster import MODEL, Cluster

FLOOD, FEW, SLOTS, SECONDS = 500, 10, 8, 0.2
TOKENS = 10
ENGINE = ("--per-second", f"{TOKENS / SECONDS:g}")
PATIENT = {
    "GPUTORRENT_QUEUE_SECONDS": "120",
    "GPUTORRENT_LEASE_SECONDS": "6",
    "GPUTORRENT_TOTAL_SECONDS": "300",
}


def client_of(cluster: Cluster) -> httpx.AsyncClient:
    """A connection for each request: one that is kept may be closed by the server as it is used again."""
    limits = httpx.Limits(max_connections=FLOOD, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=cluster.url, timeout=300, limits=limits)


async def ask(client: httpx.AsyncClient, key: str, how_often: int) -> list[str]:
    """Send so many requests at once; the ids of the jobs they became."""
    body = {"model": MODEL, "prompt": "on and on", "max_tokens": TOKENS}

    async def one() -> str:
        answer = await client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {answer.text}")
        return answer.headers["x-request-id"]

    return await asyncio.gather(*(one() for _ in range(how_often)))


async def flood(cluster: Cluster, a: str, b: str) -> tuple[list[str], list[str]]:
    """A's jobs and B's; B asks when all of A's are on the board."""
    async with client_of(cluster) as first, client_of(cluster) as second:
        flooding = asyncio.create_task(ask(first, a, FLOOD))
        # The rest is on its way, or has been answered.
        while await asyncio.to_thread(cluster.slots_held) < FLOOD * 0.6:  # noqa: ASYNC110 - it asks the cluster
            await asyncio.sleep(0.05)
        few = await ask(second, b, FEW)
        return await flooding, few


async def alone(cluster: Cluster, b: str) -> list[str]:
    async with client_of(cluster) as client:
        return await ask(client, b, FEW)


def waits(cluster: Cluster, jobs: Sequence[str]) -> list[float]:
    """Seconds from the request to a slot, as the records of the jobs say, in order."""
    records = [cluster.job_ended(job) for job in jobs]
    return sorted(record["placed"] - record["created"] for record in records)


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(slots: int) -> tuple[list[float], list[float]]:
    """A's waits and B's on a cluster with so many slots; only B asks when it has half of them."""
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **PATIENT) as cluster:
        cluster.agent_ready("one", *ENGINE, arguments=("--slots", str(slots)))
        said = cluster.manage("apikey", "create", "--name", "b", "--staff")
        found = re.search(r"sk-gt\S+", said)
        if found is None:
            raise SystemExit(f"no key in: {said}")
        if slots < SLOTS:
            return [], waits(cluster, asyncio.run(alone(cluster, found[0])))
        first, second = asyncio.run(flood(cluster, cluster.key, found[0]))
        return waits(cluster, first[::10]), waits(cluster, second)


def main() -> int:
    _, by_itself = run(SLOTS // 2)
    flooding, beside = run(SLOTS)
    print(f"{'':34} {'median':>8} {'p95':>8} {'longest':>8}   (seconds until placed)")
    for name, ordered in (
        (f"B alone, {SLOTS // 2} slots: {FEW} at once", by_itself),
        (f"B beside A, {SLOTS} slots: {FEW} at once", beside),
        (f"A, {SLOTS} slots: {FLOOD} at once", flooding),
    ):
        print(
            f"{name:34} {percentile(ordered, 0.5):8.2f} {percentile(ordered, 0.95):8.2f} {ordered[-1]:8.2f}"
        )
    ratio = percentile(beside, 0.95) / max(percentile(by_itself, 0.95), 0.001)
    print(f"B's p95 is {ratio:.2f} times what it would have alone with half of the slots")
    return 0 if ratio <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
