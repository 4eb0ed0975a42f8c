"""Does a chat find its beginning in the cache? Chats of several turns over two nodes with real vLLM, once
with prefix affinity and once without. Prints the engines' prefix-cache hit rates and the time to an answer.

    make bench-affinity            (or: .venv/bin/python -m benchmarks.affinity --help)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.batching import MODEL
from gputorrent import ports
from tests.journeys.cluster import FAST, ROOT, Cluster

NODES = ("one", "two")
HITS, ASKED = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
WORDS = [
    "river",
    "lamp",
    "stone",
    "winter",
    "bread",
    "engine",
    "letter",
    "garden",
    "salt",
    "mirror",
    "copper",
    "thread",
    "window",
    "harbour",
]


@dataclass
class Chat:
    name: str
    turns: int
    messages: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Found:
    """Of one run: tokens that the engines looked up in their caches and found there, requests of each node,
    and seconds to each answer."""

    hits: float
    asked: float
    requests: list[float]
    seconds: list[float]

    @property
    def rate(self) -> float:
        return self.hits / self.asked if self.asked else 0.0


def counters(cluster: Cluster) -> list[tuple[float, float, float]]:
    """For each engine: prefix-cache hits, tokens asked for, requests answered."""
    found = []
    for name in NODES:
        text = httpx.get(f"http://127.0.0.1:{cluster.engine_port(name)}/metrics", timeout=30).text
        wanted = (HITS, ASKED, "vllm:request_success_total")
        sums = dict.fromkeys(wanted, 0.0)
        for line in text.splitlines():
            if (metric := line.partition("{")[0]) in sums:
                sums[metric] += float(line.rsplit(None, 1)[-1])
        found.append((sums[HITS], sums[ASKED], sums[wanted[2]]))
    return found


async def talk(url: str, key: str, chats: list[Chat], at_once: int, words: int, seed: int) -> list[float]:
    """All turns of all chats, in random order, so many at once; the seconds each took."""
    luck, seconds = random.Random(seed), []
    resting = list(chats)

    async def callers(client: httpx.AsyncClient) -> None:
        while resting:
            chat = resting.pop(luck.randrange(len(resting)))
            text = " ".join(luck.choices(WORDS, k=words))
            chat.messages.append({"role": "user", "content": f"{chat.name}, {len(chat.messages)}: {text}"})
            body = {"model": MODEL, "messages": chat.messages, "max_tokens": 24, "temperature": 0}
            begun = time.perf_counter()
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise SystemExit(f"{url} answered {answer.status_code}: {answer.text[:300]}")
            seconds.append(time.perf_counter() - begun)
            said = answer.json()["choices"][0]["message"]["content"]
            chat.messages.append({"role": "assistant", "content": said})
            chat.turns -= 1
            if chat.turns:
                resting.append(chat)

    async with httpx.AsyncClient(timeout=300, headers={"Authorization": f"Bearer {key}"}) as client:
        await asyncio.gather(*(callers(client) for _ in range(at_once)))
    return seconds


def run(cluster: Cluster, port: int, name: str, chosen: argparse.Namespace) -> Found:
    before = counters(cluster)
    chats = [Chat(f"{name} {n} {random.random()}", chosen.turns) for n in range(chosen.chats)]
    work = talk(f"http://127.0.0.1:{port}", cluster.key, chats, chosen.at_once, chosen.words, chosen.seed)
    seconds = asyncio.run(work)
    gained = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, counters(cluster), strict=True)
    ]
    hits, asked, requests = zip(*gained, strict=True)
    return Found(sum(hits), sum(asked), list(requests), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--words", type=int, default=100, help="of each question")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine-python", default=str(ROOT / ".venv-engine/bin/python"))
    parser.add_argument("--model-folder", default=str(ROOT / ".cache/models" / MODEL))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **dict.fromkeys(FAST, "")) as cluster:
        print(f"loading {MODEL} in vLLM twice ...", flush=True)
        for name in NODES:
            cluster.real_agent(name, f"{MODEL}={chosen.model_folder}", chosen.engine_python)
        # Two web processes on the same nodes, which differ in this setting alone.
        cluster.env["GPUTORRENT_AFFINITY"] = "0"
        off = ports.any_free()
        cluster.start_web(off)
        found = {}
        for name, port in {"without": off, "with": cluster.port}.items():
            found[name] = run(cluster, port, name, chosen)
            f = found[name]
            print(
                f"{name:8} affinity: hit rate {f.rate:6.1%} ({f.hits:.0f} of {f.asked:.0f} prompt tokens)"
                f"  requests {'/'.join(f'{n:.0f}' for n in f.requests)}"
                f"  answer p50 {statistics.median(f.seconds):.2f} s",
                flush=True,
            )
        print(json.dumps({name: {"hit_rate": round(f.rate, 3)} for name, f in found.items()}))
        return 0 if found["with"].rate > found["without"].rate else 1


if __name__ == "__main__":
    sys.exit(main())
