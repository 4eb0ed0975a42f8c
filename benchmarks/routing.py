"""What does it cost to place a request, with 1 to 1,000 nodes? CPU time, split into what a web process does
(decide, note the turn, ask the board) and what Redis does, and what a web process's look at the nodes costs
while they beat, or while many requests wait.

    make bench-routing            (or: .venv/bin/python -m benchmarks.routing --help)

Nodes are scripted: published as the registry does and leased, on a Redis of their own. Exits with 1 if
routing takes 100 us a request or more at 1,000 nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
from msgspec import structs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")
os.environ.setdefault("SECRET_KEY", "benchmarks.routing")

from django.conf import settings

django.setup()

from gputorrent.embedded import RedisServer  # noqa: E402
from gputorrent.redis import Pipe, asynchronous, blocking  # noqa: E402
from jobs import prompt, routing  # noqa: E402
from jobs.board import Board, Placed, Waiting  # noqa: E402
from jobs.interactive import Request  # noqa: E402
from jobs.outlook import Outlook  # noqa: E402
from nodes import view  # noqa: E402
from tests.jobs.scripted import work  # noqa: E402
from worker_agent.contract import ModelState, lease_key  # noqa: E402

SLOTS = 32
GOAL_US = 100.0
CHAT = [("system", "You are a helpful assistant. " * 20)] + [
    (role, f"Message {n}: " + "some words of a conversation " * 12)
    for n, role in enumerate(("user", "assistant") * 5)
]


def node_id(n: int) -> str:
    return f"{n:016x}"


def nodes(count: int, models: int = 1) -> list[view.NodeView]:
    """A mixed fleet: four kinds of GPU, 20 to 80 ms to the first token, contexts of 8 and 32 thousand."""
    dice = random.Random(count)  # the same fleet in every run
    return [
        view.NodeView(
            id=node_id(n),
            name=f"node-{n}",
            state="online",
            incarnation=1,
            models=[
                view.ModelView(
                    f"m{n % models}" if models > 1 else "m",
                    ModelState.READY,
                    SLOTS,
                    dice.choice((8192, 32768)),
                    0.0,
                    dice.uniform(20, 80),
                    True,
                    0,
                    "",
                    dice.choice((0.936, 1.008, 2.039, 3.35)),
                    "a card",
                    dice.uniform(60, 70),
                )
            ],
            memory_budget=24 << 30,
            memory_used=12 << 30,
            updated_at=time.time(),
        )
        for n in range(count)
    ]


def populate(views: list[view.NodeView]) -> None:
    client = blocking()
    client.flushall()
    view.mark_filled(client)
    for at in range(0, len(views), 200):
        view.publish(client, views[at : at + 200])
    with client.pipeline(transaction=False) as pipe:
        for v in views:
            pipe.set(lease_key(v.id), "1")
        pipe.execute()


class Desk:
    """One web process's outlook and board, as a request meets them."""

    def __init__(self) -> None:
        self.client = asynchronous()
        self.pipe = Pipe(self.client)
        self.board, self.outlook = Board(self.pipe), Outlook()

    async def refresh(self) -> None:
        await self.outlook.refresh(self.pipe, self.board, "web")


def requests(count: int) -> Iterator[Request]:
    """Chats of several keys: some with a beginning that was seen before, of different lengths."""
    for n in range(count):
        prefix = prompt.of_cache_key(str(n % 7), "m", f"chat {n % 997}") if n % 3 == 0 else prompt.NO_PREFIX
        yield Request(
            path="/v1/chat/completions",
            model="m",
            body=b"{}",
            stream=True,
            key=n % 7,
            tokens_wanted=200 + n % 9000,
            prefix=prefix,
        )


async def decide(desk: Desk, count: int, under_way: int, every: int) -> dict[str, float]:
    """Microseconds of CPU for one decision, everything before and after it that routing needs included;
    with a new snapshot after each `every` requests, whose own cost is not in it."""
    running: deque[str] = deque()
    spent, worst = 0.0, 0.0
    outlook = desk.outlook
    for n, request in enumerate(requests(count)):
        if n % every == 0:
            loads = dict(outlook.in_flight)
            await desk.refresh()
            outlook.in_flight.update(loads)  # nothing is on the board: these are the board's figures
        before = time.process_time()
        decision = outlook.decide(request, frozenset())
        assert isinstance(decision, routing.Place)
        turn = outlook.spreading.take("m", decision.order)
        node = decision.order[0].node
        turn.settle(decision.order[0])
        outlook.placed(node, "m")
        outlook.affinity.remember(request.prefix, node)
        running.append(node)
        if len(running) > under_way:
            outlook.left(running.popleft(), "m")
        took = time.process_time() - before
        spent += took
        worst = max(worst, took)
    return {"decide_us": spent / count * 1e6, "worst_us": worst * 1e6}


def redis_cpu() -> float:
    """Seconds of CPU that the server has used."""
    info: Any = blocking().info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def reserve(desk: Desk, count: int, label: str) -> tuple[float, float]:
    """Microseconds of CPU for one reservation and its release, here and in Redis, 16 at a time."""
    await desk.refresh()
    outlook, names = desk.outlook, iter(range(count))
    here, there = time.process_time(), redis_cpu()

    async def one(n: int, request: Request) -> None:
        decision = outlook.decide(request, frozenset())
        assert isinstance(decision, routing.Place)
        turn = outlook.spreading.take("m", decision.order)
        answer = await reserved(desk, work(f"{label}{n}", reply="web"), decision, str(request.key))
        assert isinstance(answer, Placed), answer
        turn.settle(decision.scored(answer.node))
        outlook.placed(answer.node, "m")
        await desk.board.release(answer.node, "m", f"{label}{n}", 1)
        outlook.left(answer.node, "m")

    async def some() -> None:
        for n in names:
            await one(n, wanted[n])

    wanted = list(requests(count))
    await asyncio.gather(*(some() for _ in range(16)))
    return (time.process_time() - here) / count * 1e6, (redis_cpu() - there) / count * 1e6


async def reserved(
    desk: Desk, item: Any, decision: routing.Place, tenant: str, wait: float = 0.0
) -> Placed | Waiting | Any:
    return await desk.board.reserve(
        item,
        [s.node for s in decision.order],
        tenant=tenant,
        wait_seconds=wait,
        tried=decision.barred,
        others=decision.later,
    )


def beat(views: list[view.NodeView], some: int) -> None:
    """So many nodes report anew, a little slower or faster than before."""
    for v in random.sample(views, some):
        models = [structs.replace(m, ttft_ms=m.ttft_ms * random.uniform(0.9, 1.1)) for m in v.models]
        view.publish(blocking(), [structs.replace(v, models=models)])


async def refreshes(desk: Desk, views: list[view.NodeView], beats: int, looks: int) -> tuple[float, float]:
    """Milliseconds of CPU for one look at the nodes after so many beats, here and in Redis."""
    await desk.refresh()
    here = there = 0.0
    for _ in range(looks):
        if beats:
            beat(views, min(beats, len(views)))
        a, b = time.process_time(), redis_cpu()
        await desk.refresh()
        here, there = here + time.process_time() - a, there + redis_cpu() - b
    return here / looks * 1e3, there / looks * 1e3


async def beside_waiting(waiting: int, count: int) -> tuple[float, float, float]:
    """Microseconds of Redis for a reservation and its release of one model while so many requests wait for
    another; the same for one that joins that queue; and milliseconds to look through all that wait."""
    views = nodes(20)
    full = structs.replace(views[0].models[0], name="full", slots=0)
    populate([structs.replace(views[0], models=[*views[0].models, full]), *views[1:]])
    desk = Desk()
    blocking().set("gt:web:web", "1")

    async def join(name: str) -> None:
        item = work(name, model="full", reply="web")
        answer = await desk.board.reserve(item, [views[0].id], tenant=name[-2:], wait_seconds=3600)
        assert isinstance(answer, Waiting), answer

    for at in range(0, waiting, 500):
        await asyncio.gather(*(join(f"w{n}") for n in range(at, min(waiting, at + 500))))
    _, place = await reserve(desk, count, "r")
    before = redis_cpu()
    for at in range(0, count, 16):
        await asyncio.gather(*(join(f"x{n}") for n in range(at, min(count, at + 16))))
    joining = (redis_cpu() - before) / count * 1e6
    before = time.process_time()
    assert len(await desk.board.waiting()) == waiting + count
    through = (time.process_time() - before) * 1e3
    await desk.client.aclose()
    return place, joining, through


def prompt_us(count: int = 2000) -> float:
    before = time.process_time()
    for n in range(count):
        prompt.of_chat(str(n), "m", CHAT)
        prompt.chat_tokens((content for _, content in CHAT), 100)
    return (time.process_time() - before) / count * 1e6


async def with_nodes(count: int, chosen: argparse.Namespace) -> dict[str, float]:
    views = nodes(count)
    populate(views)
    desk = Desk()
    per_look = max(1, int(chosen.rate * settings.SNAPSHOT_SECONDS))
    await desk.refresh()
    await decide(desk, per_look, count * 8, per_look)  # warm-up
    found = await decide(desk, chosen.requests, count * 8, per_look)
    desk.outlook.in_flight.clear()
    found["web_us"], found["redis_us"] = await reserve(desk, min(chosen.requests, 4000), "r")
    beats = max(1, round(count / settings.HEARTBEAT_SECONDS * settings.SNAPSHOT_SECONDS))
    found["idle_look_ms"], _ = await refreshes(desk, views, 0, 20)
    found["look_ms"], found["redis_look_ms"] = await refreshes(desk, views, beats, 20)
    await desk.client.aclose()
    return found


async def measure(chosen: argparse.Namespace) -> int:
    print(
        f"{'nodes':>6} {'decide':>9} {'worst':>9} | {'whole, web':>10} {'Redis':>8} |"
        " a look with beats, and without"
    )
    told: dict[str, Any] = {"prompt_us": prompt_us()}
    for count in chosen.nodes:
        found = told[str(count)] = await with_nodes(count, chosen)
        print(
            f"{count:6} {found['decide_us']:6.1f} us {found['worst_us']:6.0f} us |"
            f" {found['web_us']:7.0f} us {found['redis_us']:5.0f} us |"
            f" {found['look_ms']:5.2f} ms (Redis {found['redis_look_ms']:.2f} ms),"
            f" {found['idle_look_ms']:5.2f} ms",
            flush=True,
        )
    print(f"a chat of {len(CHAT)} messages is hashed and measured in {told['prompt_us']:.1f} us")
    for waiting in chosen.waiting:
        place, join, through = await beside_waiting(waiting, min(chosen.requests, 2000))
        told[f"waiting_{waiting}"] = {"place_us": place, "join_us": join, "through_ms": through}
        print(
            f"{waiting:6} waiting: Redis takes {place:.0f} us to place and release, {join:.0f} us to let one"
            f" wait; a web process {through:.0f} ms to look through them",
            flush=True,
        )
    print(json.dumps(told))
    most = told[str(max(chosen.nodes))]["decide_us"]
    print(f"at {max(chosen.nodes)} nodes routing takes {most:.1f} us a request (goal: below {GOAL_US:.0f})")
    return 0 if most < GOAL_US else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--waiting", type=int, nargs="*", default=[0, 1000, 10_000])
    parser.add_argument("--requests", type=int, default=10_000, help="decisions for each number of nodes")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second of one web process")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        settings.REDIS_URL = server.url
        settings.QUEUE_PER_MODEL = settings.QUEUE_TOTAL = settings.QUEUE_PER_KEY = 100_000
        return asyncio.run(measure(chosen))


if __name__ == "__main__":
    sys.exit(main())
