"""What it costs every stream that somebody might watch it: the processor's time for a chunk on its way to the
job, with and without the tail that is kept. Rounds take turns; the medians are printed in microseconds.

    .venv/bin/python -m benchmarks.watching
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")
django.setup()

from jobs.interactive import InteractiveJob, Request, new_job_id  # noqa: E402
from jobs.tail import Tails  # noqa: E402
from worker_agent.contract import Chunk  # noqa: E402

CHUNK = (
    b'data: {"id":"cmpl-0","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":'
    b'" word","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
)


def microseconds(chunks: int, tails: Tails | None) -> float:
    """For each chunk of a stream of so many, which its caller reads as fast as it comes."""
    request = Request("/v1/completions", "m", b"{}", stream=True)
    job = InteractiveJob(new_job_id(), request, 8 * 1024 * 1024)
    if tails is not None:
        job.tail = tails.begin(job, 1)
    job.claim()
    job.on_placed("n")
    replies = [Chunk(job.id, 1, job.lease, seq, CHUNK) for seq in range(chunks)]
    gc.collect()
    gc.disable()
    begun = time.process_time()
    for reply in replies:
        job.on_reply(reply)
        job._events.clear()
        job._buffered = 0
    took = time.process_time() - begun
    gc.enable()
    if tails is not None:
        tails.over(job.id)
    return took / chunks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {}
    tails = Tails()
    for _ in range(asked.rounds):
        for name, chunks, kept in (
            ("without", 500, None),
            ("kept", 500, tails),
            ("long, without", 4000, None),
            ("long: the window is full", 4000, tails),
        ):
            found.setdefault(name, []).append(microseconds(chunks, kept))
    print(json.dumps({name: round(statistics.median(times), 3) for name, times in found.items()}, indent=2))


if __name__ == "__main__":
    main()
