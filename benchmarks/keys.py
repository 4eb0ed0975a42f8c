"""Do wrong keys hurt good ones? A steady load with a good key is timed alone, then while wrong keys knock
1,000 times a second, in alternating rounds against one web process. Prints the p50 and p99 of both, their
ratio, and the web process's CPU; exits with 1 if wrong keys raise the p99 by more than half.

    make bench-keys            (or: .venv/bin/python -m benchmarks.keys --help)

With two cores or more, the web process and Redis have one, and all else, agent, engine and both clients, the
others: what the clients themselves cost must not pass for what the coordinator does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.synchronize
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import psutil

from tests.journeys.cluster import FAST, MODEL, Cluster

BODY = json.dumps(
    {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 8}
).encode()


LINES = 32
"""Connections that each of the two clients keeps open."""


def asking(key: str) -> bytes:
    """One whole completion request as it goes over the wire."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


class Line:
    """One connection that stays open: written by hand, so that the clients take little of the machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, request: bytes) -> int:
        """Send and read the whole answer. Returns its status."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(head[9:12])

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def paced(port: int, requests: list[bytes], per_second: float, lines: int) -> list[tuple[float, int]]:
    """Send each request when its time has come, on whichever connection is free. Returns for each its
    seconds from the moment when it was due (waiting for a connection counts) and its status."""
    free: asyncio.Queue[Line] = asyncio.Queue()
    opened = [Line(port) for _ in range(lines)]
    for line in opened:
        await line.open()
        free.put_nowait(line)
    begun = time.perf_counter() + 0.1

    async def one(n: int, request: bytes) -> tuple[float, int]:
        due = begun + n / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        line = await free.get()
        status = await line.ask(request)
        free.put_nowait(line)
        return time.perf_counter() - due, status

    found = await asyncio.gather(*(one(n, request) for n, request in enumerate(requests)))
    for line in opened:
        await line.close()
    return found


def answered(port: int, key: str, seconds: float, per_second: float) -> list[float]:
    """Seconds of each request of a steady load with a good key. Raises `SystemExit` if one failed."""
    found = asyncio.run(paced(port, [asking(key)] * int(seconds * per_second), per_second, LINES))
    if (statuses := {status for _, status in found}) != {200}:
        raise SystemExit(f"a request with a good key failed: {sorted(statuses)}")
    return [took for took, _ in found]


def knock(port: int, seconds: float, per_second: float, ready: multiprocessing.synchronize.Event) -> None:
    """Wrong keys, each another, from a process of its own that does as little as it can: each line is read
    only when its turn comes again. Exits with 1 if one was let in."""
    requests = [asking(f"sk-gt-{secrets.token_urlsafe(32)}") for _ in range(int(seconds * per_second))]
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(LINES)]
    files = [line.makefile("rb") for line in lines]
    statuses = set()
    ready.set()
    begun = time.perf_counter()
    for n, request in enumerate(requests):
        if (early := begun + n / per_second - time.perf_counter()) > 0:
            time.sleep(early)
        if n >= LINES:
            statuses.add(answer(files[n % LINES]))
        lines[n % LINES].sendall(request)
    statuses |= {answer(file) for file in files[: len(requests)]}
    took = time.perf_counter() - begun
    print(f"         {len(requests) / took:.0f} wrong keys/s", flush=True)
    sys.exit(0 if statuses == {401} else 1)


def answer(file: BinaryIO) -> int:
    """Read one answer whole. Returns its status; 0 if the connection was closed."""
    status, length = file.readline()[9:12], 0
    while (line := file.readline().lower()) not in {b"\r\n", b""}:
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    file.read(length)
    return int(status or 0)


def pin(cluster: Cluster) -> bool:
    """Give the coordinator a core of its own. What is not there any more needs none."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    mine = psutil.Process()
    for process in [mine, *mine.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            first = process.pid == cluster.web[0].pid or process.name().startswith(("redis", "valkey"))
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores[:1] if first else cores[1:])
    return True


def round_of(port: int, key: str, wrong: float, chosen: argparse.Namespace) -> list[float]:
    """Seconds of each request with the good key, while so many wrong keys come each second."""
    context = multiprocessing.get_context("spawn")
    process = None
    if wrong:
        ready = context.Event()
        process = context.Process(target=knock, args=(port, chosen.seconds + 1, wrong, ready))
        process.start()
        ready.wait(60)
        time.sleep(0.5)
    found = answered(port, key, chosen.seconds, chosen.rate)
    if process:
        process.join(120)
        if process.exitcode:
            raise SystemExit("a wrong key was not refused")
    return found


def percentile(values: list[float]) -> float:
    """The 99th."""
    return statistics.quantiles(values, n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=50, help="requests a second with the good key")
    parser.add_argument("--wrong", type=float, default=1000, help="requests a second with wrong keys")
    parser.add_argument("--seconds", type=float, default=10, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    seen: dict[str, list[float]] = {"alone": [], "beside wrong keys": []}
    used = dict.fromkeys(seen, 0.0)
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **dict.fromkeys(FAST, "")) as cluster:
        cluster.agent_ready("one", "--per-second", "200")
        key = json.loads(cluster.manage("apikey", "create", "--name", "good", "--json"))["api_key"]
        cluster.until(lambda: cluster.get("/v1/models").json()["data"], "the model is served", 15)
        web = psutil.Process(cluster.web[0].pid)
        print("the coordinator has a core of its own" if pin(cluster) else "all share one core", flush=True)
        round_of(cluster.port, key, 0, argparse.Namespace(**{**vars(chosen), "seconds": 2}))  # warm-up
        for n in range(chosen.rounds):
            for what in list(seen) if n % 2 == 0 else list(reversed(seen)):
                before = sum(web.cpu_times()[:2])
                found = round_of(cluster.port, key, 0.0 if what == "alone" else chosen.wrong, chosen)
                cpu = sum(web.cpu_times()[:2]) - before
                used[what] += cpu
                seen[what] += found
                p50, p99 = statistics.median(found) * 1000, percentile(found) * 1000
                print(
                    f"round {n + 1}  {what:18} p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"
                    f"  web {cpu / chosen.seconds:4.0%} of a core",
                    flush=True,
                )
    alone, beside = (percentile(found) * 1000 for found in seen.values())
    knocks = chosen.rounds * (chosen.seconds + 1) * chosen.wrong
    each = (used["beside wrong keys"] - used["alone"]) / knocks * 1e6
    p50s = [statistics.median(found) * 1000 for found in seen.values()]
    print(f"p50: alone {p50s[0]:.1f} ms, beside wrong keys {p50s[1]:.1f} ms")
    print(f"p99: alone {alone:.1f} ms, beside wrong keys {beside:.1f} ms, ratio {beside / alone:.2f}")
    print(f"a wrong key takes {each:.0f} us of the web process")
    told = {"alone_p99_ms": alone, "beside_p99_ms": beside, "ratio": beside / alone, "wrong_key_us": each}
    print(json.dumps({k: round(v, 3) for k, v in told.items()}))
    return 0 if beside <= 1.5 * alone else 1


if __name__ == "__main__":
    sys.exit(main())
