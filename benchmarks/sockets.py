"""What do open dashboards cost callers? A steady load on the API is timed alone, then while 20 pages watch
the dashboard over their sockets, in alternating rounds against one web process. Prints p50 and p99 of both
and the processor time of the web process; exits with 1 if the pages raise the p99 by a tenth or more.

    make bench-sockets         (or: .venv/bin/python -m benchmarks.sockets --help)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.synchronize
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from websockets.asyncio.client import connect

from benchmarks.keys import answered, percentile
from tests.browser import site
from tests.journeys.cluster import FAST, Cluster

PATH = "/ws/dashboard"
MOST = 1.1
"""How much longer the slowest hundredth may take with pages open, against alone."""
Event = multiprocessing.synchronize.Event


async def watch(url: str, cookie: str, over: Event) -> tuple[int, int]:
    """One page: takes each message and says that it has shown it. Returns messages and bytes."""
    messages = size = 0
    headers = {"Cookie": cookie, "Origin": url}
    async with connect(url.replace("http", "ws", 1) + PATH, additional_headers=headers) as socket:
        while not over.is_set():
            try:
                async with asyncio.timeout(0.5):
                    told = await socket.recv()
            except TimeoutError:
                continue
            messages += 1
            size += len(told)
            await socket.send('{"seen": true}')
    return messages, size


def watch_all(url: str, cookie: str, pages: int, open_: Event, over: Event) -> None:
    """Pages, in a process of their own. Exits with 1 if one of them was told nothing."""

    async def all_of_them() -> list[tuple[int, int]]:
        watching = [asyncio.create_task(watch(url, cookie, over)) for _ in range(pages)]
        await asyncio.sleep(1)
        open_.set()
        return await asyncio.gather(*watching)

    begun = time.perf_counter()
    told = asyncio.run(all_of_them())
    took = time.perf_counter() - begun
    each, size = sum(n for n, _ in told) / len(told) / took, sum(size for _, size in told) / took
    print(f"         {pages} pages: {each:.2f} messages/s each, {size / 1000:.0f} kB/s in all")
    sys.stdout.flush()
    sys.exit(0 if min(n for n, _ in told) > 0 else 1)


@contextmanager
def watched(cluster: Cluster, cookie: str, pages: int) -> Iterator[None]:
    """So many pages are open."""
    context = multiprocessing.get_context("spawn")
    open_, over = context.Event(), context.Event()
    process = context.Process(target=watch_all, args=(cluster.url, cookie, pages, open_, over))
    process.start()
    try:
        if not open_.wait(60):
            raise SystemExit("the pages did not open")
        yield
    finally:
        over.set()
        process.join(30)
    if process.exitcode:
        raise SystemExit(f"a page was told nothing, or sent away (exit {process.exitcode})")


def timed(cluster: Cluster, chosen: argparse.Namespace, seconds: float) -> tuple[list[float], float]:
    """Seconds of each request of a round, and processor seconds of the web process for each second."""
    web = psutil.Process(cluster.web[0].pid)
    before, begun = sum(web.cpu_times()[:2]), time.perf_counter()
    found = answered(cluster.port, cluster.key, seconds, chosen.rate)
    return found, (sum(web.cpu_times()[:2]) - before) / (time.perf_counter() - begun)


def line(what: str, took: list[float], used: float) -> str:
    p50, p99 = statistics.median(took) * 1000, percentile(took) * 1000
    return f"{what:14} p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  web {100 * used:3.0f} % of a core"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--pages", type=int, default=20, help="dashboards that are open")
    parser.add_argument("--seconds", type=float, default=15, help="length of a round")
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    took: dict[str, list[float]] = {"alone": [], "watched": []}
    used: dict[str, list[float]] = {"alone": [], "watched": []}
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **dict.fromkeys(FAST, "")) as cluster:
        for name in ("one", "two"):
            cluster.agent_ready(name, "--per-second", "200")
        with site.client(cluster) as session:
            cookie = f"sessionid={session.cookies['sessionid']}"
        timed(cluster, chosen, 2)  # warm-up
        for n in range(chosen.rounds):
            for what in list(took) if n % 2 == 0 else list(reversed(took)):
                if what == "alone":
                    found, busy = timed(cluster, chosen, chosen.seconds)
                else:
                    with watched(cluster, cookie, chosen.pages):
                        found, busy = timed(cluster, chosen, chosen.seconds)
                took[what] += found
                used[what].append(busy)
                print(f"round {n + 1}  {line(what, found, busy)}", flush=True)
    for what, found in took.items():
        print(f"all      {line(what, found, statistics.mean(used[what]))}")
    ratio = percentile(took["watched"]) / percentile(took["alone"])
    told = {f"{what}_p99_ms": round(percentile(found) * 1000, 2) for what, found in took.items()}
    print(json.dumps({**told, "ratio": round(ratio, 3)}))
    return 0 if ratio < MOST else 1


if __name__ == "__main__":
    sys.exit(main())
