"""What a request costs after its answer: its row for the ledger, the writing of it, and what it counts as.
The processor's time for a job, in microseconds: what the event loop spends on records, what the recorder's
thread spends (the database with it: SQLite works in that thread), and what counting costs. Medians of rounds.

    make bench-recording            (or: .venv/bin/python -m benchmarks.recording --help)

SQLite in a folder of its own, as `make up` has it; with DATABASE_URL a new database on that server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.recorder import Recorder

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")
os.environ.setdefault("GPUTORRENT_DATA_DIR", tempfile.mkdtemp(prefix="bench-recording-"))

KEYS, MODELS, NODES = 3, 2, 2
WHY = "2 of 2 nodes can take it; this one has the most free slots (7 of 8), 1.8 ms to the first token"


class Round:
    """Jobs that went the usual way, one answer each."""

    def __init__(self, jobs: int) -> None:
        from jobs.interactive import InteractiveJob, Request, new_job_id
        from jobs.lifecycle import Move
        from worker_agent.contract import Done, Usage

        self.jobs = []
        for n in range(jobs):
            request = Request(
                "/v1/chat/completions", f"org/model-{n % MODELS}", b"{}", stream=False, key=n % KEYS + 1
            )
            job = InteractiveJob(new_job_id(), request, 8 << 20, "w" * 16)
            job.claim()
            job.why = WHY
            job.on_placed(f"{n % NODES:016x}", 1)
            job.on_reply(Done(job.id, 1, job.lease, 0, 200, b"{}", "", Usage(12, 34), 1.5, 2.5))
            job.http_status = 200
            job.move(Move.COMPLETE)
            self.jobs.append(job)


def spent_counting(jobs: Round) -> float:
    """Seconds of the processor."""
    from jobs import counting
    from jobs.metrics import Counts
    from nodes.view import NodeView, Snapshot

    snapshot, counts = Snapshot(), Counts()
    for n in range(NODES):
        name = f"{n:016x}"
        snapshot.nodes[name] = NodeView(name, f"node-{n}", "online", 1, [], 0, 0, 0.0)
    begun = time.thread_time()
    for job in jobs.jobs:
        counting.job_over(counts, job, snapshot)
    return time.thread_time() - begun


async def spent_recording(recorder: Recorder, jobs: Round) -> tuple[float, float]:
    """Seconds of the processor: on the loop, and in the recorder's thread."""
    marks: list[float] = []
    mark: Callable[[], None] = lambda: marks.append(time.thread_time())  # noqa: E731
    await recorder._in_thread(mark)
    begun = time.thread_time()
    for job in jobs.jobs:
        recorder.note(job)
    await recorder.flush()
    loop = time.thread_time() - begun
    await recorder._in_thread(mark)
    if recorder.behind:
        raise SystemExit("the database did not take the records")
    return loop, marks[1] - marks[0]


async def measure(rounds: int, many: int) -> dict[str, list[float]]:
    """Microseconds a job, of each round with so many jobs."""
    from jobs.recorder import Recorder

    recorder = Recorder()
    found: dict[str, list[float]] = {"loop: rows": [], "thread: database": [], "loop: counting": []}
    for n in range(rounds + 5):
        jobs = Round(many)
        gc.collect()
        gc.disable()
        loop, thread = await spent_recording(recorder, jobs)
        counted = spent_counting(jobs)
        gc.enable()
        if n >= 5:  # the first ones warm up
            for times, seconds in zip(found.values(), (loop, thread, counted), strict=True):
                times.append(seconds / many * 1e6)
    await recorder.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=200, help="in a batch")
    asked = parser.parse_args()
    if server := os.environ.get("DATABASE_URL"):
        from tests.postgres import new_database

        os.environ["DATABASE_URL"] = new_database(server)
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    found = asyncio.run(measure(asked.rounds, asked.jobs))
    medians = {name: round(statistics.median(times), 1) for name, times in found.items()}
    print(json.dumps({"database": connection.vendor, "us of CPU a job": medians}, indent=2))


if __name__ == "__main__":
    main()
