"""What does the live dashboard cost with 1,000 nodes and 10,000 running jobs, while nodes report and jobs
come and go? Makes the rows, changes a tenth of the nodes each second as heartbeats would, opens pages on one
hub, and prints what a page weighs and what a second takes of the web process's core; exits with 1 if that is
more than three tenths of it.

    make bench-dashboard            (or: .venv/bin/python -m benchmarks.dashboard --help)

No browsers and no HTTP: the hub, the ledger, Redis and the templates are the real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gputorrent.embedded import RedisServer

if TYPE_CHECKING:
    from dashboard.hub import Hub

MODELS = [f"lab/model-{n}" for n in range(12)]
MOST_OF_A_CORE = 0.3


def fill(nodes: int, jobs: int) -> None:
    """The rows, and what routing sees of them."""
    from django.utils import timezone

    from gputorrent.redis import blocking
    from jobs.interactive import new_job_id
    from jobs.models import Job, JobState
    from nodes import view
    from nodes.models import Gpu, Node, NodeModel, NodeState

    made = [
        Node(
            pk=f"{n:016x}",
            name=f"host-{n:04}",
            state=NodeState.ONLINE,
            incarnation=1,
            last_beat_at=timezone.now(),
            memory_budget=2**36,
        )
        for n in range(nodes)
    ]
    Node.objects.bulk_create(made)
    Gpu.objects.bulk_create(
        Gpu(
            node=node,
            index=i,
            uuid=f"GPU-{node.pk}-{i}",
            name="NVIDIA GeForce RTX 4090",
            vram_total=24 * 2**30,
            vram_free=random.randrange(24) * 2**30,
            utilisation=random.random(),
            temperature_c=60,
        )
        for node in made
        for i in range(2)
    )
    NodeModel.objects.bulk_create(
        NodeModel(node=node, name=name, state="ready", slots=64)
        for node in made
        for name in random.sample(MODELS, 3)
    )
    Job.objects.bulk_create(
        (
            Job(
                pk=new_job_id(), model=random.choice(MODELS), node=random.choice(made), state=JobState.RUNNING
            )
            for _ in range(jobs)
        ),
        batch_size=1000,
    )
    client = blocking()
    rows = Node.objects.prefetch_related("gpus", "models")
    view.publish(client, [view.of(node) for node in rows])
    view.mark_filled(client)
    with client.pipeline() as pipe:
        for node in made:
            pipe.set(f"gt:node:{node.pk}:lease", "1", ex=3600)
        pipe.execute()


def beat(nodes: int) -> None:
    """A tenth of the nodes says something new each second, and a hundred jobs end and come; for ever."""
    import django

    django.setup()
    from django.db import transaction
    from django.utils import timezone

    from jobs.interactive import new_job_id
    from jobs.models import Job, JobState
    from nodes.models import Gpu, Node

    turn = 0
    while True:
        time.sleep(1.0)
        turn += 1
        ids = [f"{n:016x}" for n in range(turn % 10, nodes, 10)]
        with transaction.atomic():
            Node.objects.filter(pk__in=ids).update(last_beat_at=timezone.now())
            Gpu.objects.filter(node__in=ids).update(utilisation=random.random())
            old = list(Job.objects.filter(state=JobState.RUNNING).order_by("created_at").values("pk")[:100])
            Job.objects.filter(pk__in=[j["pk"] for j in old]).delete()
            Job.objects.bulk_create(
                Job(pk=new_job_id(), model=random.choice(MODELS), node_id=ids[0], state=JobState.RUNNING)
                for _ in range(100)
            )


async def watch(hub: Hub, pages: int, seconds: float) -> tuple[list[int], list[list[int]]]:
    """Open pages, each on another part of the list, and read along. Returns the bytes of each first message,
    and those of what followed."""
    import msgspec

    from dashboard.hub import Visitor
    from dashboard.rendering import Rendered, changes
    from dashboard.selecting import View

    encode = msgspec.json.Encoder().encode

    async def page(number: int) -> list[int]:
        visitor, told, sizes = Visitor(View(page=1 + number % 5)), Rendered(), list[int]()
        hub.join(visitor)
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await visitor.changed.wait()
            except TimeoutError:
                hub.leave(visitor)
                return sizes
            visitor.changed.clear()
            now = visitor.latest
            sizes.append(len(encode(changes(told, now))))
            told = now

    end = asyncio.get_running_loop().time() + seconds
    found = await asyncio.gather(*(page(n) for n in range(pages)))
    return [sizes[0] for sizes in found], [sizes[1:] for sizes in found]


async def late(longest: list[float]) -> None:
    """How late the loop comes back to who sleeps: what a request on it would feel."""
    while True:
        due = time.perf_counter() + 0.01
        await asyncio.sleep(0.01)
        longest.append(time.perf_counter() - due)


async def measure(chosen: argparse.Namespace) -> dict[str, float]:
    from dashboard.hub import Hub
    from jobs.dispatch import Dispatcher

    dispatcher = Dispatcher()
    await dispatcher.start()
    await dispatcher.outlook.refresh(dispatcher.pipe, dispatcher.board, dispatcher.mailbox.web)
    hub, longest = Hub(dispatcher), list[float]()
    clock = asyncio.create_task(late(longest))
    began, cpu = time.perf_counter(), _cpu()
    if chosen.pages:
        first, later = await watch(hub, chosen.pages, chosen.seconds)
    else:
        first, later = [0], [[0]]
        await asyncio.sleep(chosen.seconds)
    took, spent = time.perf_counter() - began, _cpu() - cpu
    clock.cancel()
    await hub.stop()
    await dispatcher.stop()
    sent = [size for sizes in later for size in sizes]
    longest.sort()
    return {
        "pages": chosen.pages,
        "first_message_kib": max(first) / 1024,
        "message_kib": sum(sent) / max(1, len(sent)) / 1024,
        "messages_each_second_and_page": len(sent) / max(1, chosen.pages) / took,
        "share_of_a_core": spent / took,
        "loop_late_p99_ms": longest[int(len(longest) * 0.99)] * 1000,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--pages", type=int, nargs="+", default=[0, 1, 20])
    parser.add_argument("--seconds", type=float, default=10, help="for each number of pages")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="gputorrent.settings",
            GPUTORRENT_DATA_DIR=f"{folder}/data",
            GPUTORRENT_LOG_LEVEL="WARNING",
            REDIS_URL=server.url,
        )
        os.environ.pop("DATABASE_URL", None)
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        fill(chosen.nodes, chosen.jobs)
        beats = multiprocessing.get_context("spawn").Process(target=beat, args=(chosen.nodes,), daemon=True)
        beats.start()
        print(f"{chosen.nodes} nodes, {chosen.jobs} running jobs, {chosen.seconds:g} s each")
        found = []
        for pages in chosen.pages:
            told = asyncio.run(measure(argparse.Namespace(**{**vars(chosen), "pages": pages})))
            found.append(told)
            print("  ".join(f"{name} {figure:.2f}" for name, figure in told.items()), flush=True)
        beats.terminate()
        beats.join()
    print(json.dumps([{k: round(v, 3) for k, v in told.items()} for told in found]))
    return 0 if all(told["share_of_a_core"] <= MOST_OF_A_CORE for told in found) else 1


if __name__ == "__main__":
    sys.exit(main())
