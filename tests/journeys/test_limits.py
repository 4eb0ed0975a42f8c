"""Limits and usage with two real web processes."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from gputorrent import ports
from tests.journeys.cluster import MODEL, Cluster

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 4}


def key(cluster: Cluster, *options: str) -> dict[str, str]:
    made = json.loads(cluster.manage("apikey", "create", "--name", "ann", "--json", *options))
    return {"Authorization": f"Bearer {made['api_key']}"}


def second_web(cluster: Cluster) -> list[str]:
    """The addresses of two web processes; the second is started, and has the node."""
    port = ports.any_free()
    cluster.start_web(port)
    return [cluster.url, f"http://127.0.0.1:{port}"]


def until_known(cluster: Cluster, urls: list[str], headers: dict[str, str]) -> None:
    def known() -> bool:
        return all(httpx.get(f"{url}/v1/models", headers=headers).json().get("data") for url in urls)

    cluster.until(known, "both know the key and the model", 15)


def flood(urls: list[str], headers: dict[str, str], n: int) -> Counter[int]:
    """So many requests at once, by turns to each address; how many had which status."""
    gate = threading.Barrier(n)

    def one(i: int) -> int:
        with httpx.Client(timeout=30, headers=headers) as client:
            gate.wait()
            return client.post(f"{urls[i % len(urls)]}/v1/chat/completions", json=BODY).status_code

    with ThreadPoolExecutor(n) as pool:
        return Counter(pool.map(one, range(n)))


def test_of_three_times_as_many_exactly_so_many_are_admitted(bare: Cluster):
    bare.agent_ready("one")
    urls = second_web(bare)
    by_requests = key(bare, "--rpm", "12")
    prompt = len(json.dumps(BODY, separators=(",", ":")).encode()) // 4 + 1
    by_tokens = key(bare, "--tpm", str(12 * (prompt + 4)), "--tokens-per-day", "100000")
    until_known(bare, urls, by_requests)
    until_known(bare, urls, by_tokens)
    assert flood(urls, by_requests, 36) == {200: 12, 429: 24}
    # What was not used of the estimate comes back meanwhile, so a few more may pass; never fewer.
    seen = flood(urls, by_tokens, 36)
    assert seen[200] + seen[429] == 36
    assert 12 <= seen[200] < 36
    told = bare.manage("usage", "--csv", "--group-by", "key")
    rows = {r["key_id"]: r for r in csv.DictReader(io.StringIO(told))}
    answered = sorted(int(r["requests"]) for r in rows.values())
    assert answered == sorted([12, seen[200]])
    assert all(int(r["completion_tokens"]) == 4 * int(r["requests"]) for r in rows.values())


def test_a_killed_web_process_gives_the_places_of_its_callers_back(bare: Cluster):
    bare.agent_ready("one", "--per-second", "2")
    urls = second_web(bare)
    ann = key(bare, "--concurrency", "1")
    until_known(bare, urls, ann)
    body = {**BODY, "max_tokens": 200, "stream": True}
    with (
        httpx.Client(timeout=30, headers=ann) as client,
        client.stream("POST", f"{urls[1]}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines)
        assert httpx.post(f"{urls[0]}/v1/chat/completions", json=BODY, headers=ann).status_code == 429
        bare.web[1].kill()

    def admitted() -> bool:
        answer = httpx.post(f"{urls[0]}/v1/chat/completions", json=BODY, headers=ann, timeout=30)
        return answer.status_code == 200

    bare.until(admitted, "its place is free", 30)
