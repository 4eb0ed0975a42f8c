"""Does vLLM batch what comes through the cluster? 32 streamed chats at once, straight to a vLLM and through
the cluster to the same vLLM, in alternating rounds. Prints tokens/s and TTFT of both, and their ratio. Then
one stream at a time, straight and through it in turn: what the cluster adds to TTFT where nothing waits.

    make bench-batching            (or: .venv/bin/python -m benchmarks.batching --help)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.journeys.cluster import FAST, ROOT, Cluster

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "Tell a story about a lighthouse keeper and number {i}."


async def one(client: httpx.AsyncClient, url: str, body: dict) -> tuple[float, int]:
    """One stream. Returns (seconds to the first token, tokens by the engine's count)."""
    begun, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", url, json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{url} answered {answer.status_code}: {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(f"{url} ended a stream with {event['error']}")
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begun
    return first, tokens


def asked(number: int, tokens: int) -> dict:
    """The body of one request; each number has another prompt, so that no cache knows it."""
    return {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "messages": [{"role": "user", "content": PROMPT.format(i=number)}],
    }


async def round_of(url: str, key: str, streams: int, tokens: int) -> tuple[float, float]:
    """All streams at once. Returns (tokens/s in all, median TTFT in seconds)."""
    limits = httpx.Limits(max_connections=streams)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(timeout=300, limits=limits, headers=headers) as client:
        begun = time.perf_counter()
        found = await asyncio.gather(*(one(client, url, asked(i, tokens)) for i in range(streams)))
        seconds = time.perf_counter() - begun
    return sum(n for _, n in found) / seconds, statistics.median(t for t, _ in found)


async def alone(ways: dict[str, tuple[str, str]], count: int) -> dict[str, list[float]]:
    """One short stream at a time, each way in turn. Returns the times to the first token in ms, sorted."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    async with httpx.AsyncClient(timeout=300) as client:
        for n in range(count):
            order = list(ways) if n % 2 == 0 else list(reversed(ways))
            for k, name in enumerate(order):
                url, key = ways[name]
                client.headers["Authorization"] = f"Bearer {key}"
                first, _ = await one(client, f"{url}/v1/chat/completions", asked(10_000 + 2 * n + k, 8))
                seen[name].append(1000 * first)
    return {name: sorted(values) for name, values in seen.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=60, help="streams one at a time, each way")
    parser.add_argument("--engine-python", default=str(ROOT / ".venv-engine/bin/python"))
    parser.add_argument("--model-folder", default=str(ROOT / ".cache/models" / MODEL))
    chosen = parser.parse_args()
    defaults = dict.fromkeys(FAST, "")
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **defaults) as cluster:
        print(f"loading {MODEL} in vLLM ...", flush=True)
        cluster.real_agent("one", f"{MODEL}={chosen.model_folder}", chosen.engine_python)
        engine = f"http://127.0.0.1:{cluster.engine_port('one')}"
        ways = {"direct": (engine, "none"), "cluster": (cluster.url, cluster.key)}
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        asyncio.run(round_of(f"{engine}/v1/chat/completions", "none", chosen.streams, 16))  # warm-up
        for n in range(chosen.rounds):
            for name in list(ways) if n % 2 == 0 else list(reversed(ways)):
                url, key = ways[name]
                run = round_of(f"{url}/v1/chat/completions", key, chosen.streams, chosen.tokens)
                seen[name].append(asyncio.run(run))
                rate, ttft = seen[name][-1]
                print(
                    f"round {n + 1}  {name:8}  {rate:8.1f} tokens/s  TTFT p50 {ttft * 1000:7.0f} ms",
                    flush=True,
                )
        rates = {name: statistics.median(r for r, _ in values) for name, values in seen.items()}
        ratio = rates["cluster"] / rates["direct"]
        direct, through = rates["direct"], rates["cluster"]
        print(f"median: direct {direct:.1f}, cluster {through:.1f} tokens/s, ratio {ratio:.3f}")
        lone = asyncio.run(alone(ways, chosen.alone))
        for name, values in lone.items():
            low, mid, high = (values[len(values) * part // 4] for part in (1, 2, 3))
            print(f"one at a time  {name:8}  TTFT p50 {mid:6.1f} ms (half of them {low:.1f} to {high:.1f})")
        added = statistics.median(lone["cluster"]) - statistics.median(lone["direct"])
        told = {"streams": chosen.streams, **{k: round(v, 1) for k, v in rates.items()}, "ratio": ratio}
        print(json.dumps({**told, "added_ttft_ms": round(added, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
