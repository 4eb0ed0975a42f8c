"""Limits and usage with two real web processes."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def flood(urls: list[str], headers: dict[str, str], n: int, body: dict[str, Any] = BODY) -> Counter[int]:
    """So many requests at once, by turns to each address; how many had which status. Whoever is answered
    with a stream leaves it once all have their status."""
    gate, judged = threading.Barrier(n), threading.Barrier(n)
    path = "chat/completions" if "messages" in body else "completions"

    def one(i: int) -> int:
        with httpx.Client(timeout=60, headers=headers) as client:
            gate.wait()
            with client.stream("POST", f"{urls[i % len(urls)]}/v1/{path}", json=body) as answer:
                if body.get("stream"):
                    judged.wait(60)
                return answer.status_code

    with ThreadPoolExecutor(n) as pool:
        return Counter(pool.map(one, range(n)))


def as_long_as_estimated() -> tuple[dict[str, Any], int]:
    """A request that takes exactly the tokens that are reserved for it (four bytes a token, and the answer),
    and how many that is: nothing is given back when it ends, whenever that is."""
    for n in range(20, 200):
        body = {"model": MODEL, "prompt": [10] * n, "max_tokens": 4}
        if len(json.dumps(body, separators=(",", ":"))) // 4 + 1 == n:
            return body, n + 4
    raise AssertionError("no length fits")


def test_of_three_times_as_many_exactly_so_many_are_admitted(bare: Cluster):
    bare.agent_ready("one", "--per-second", "20")
    urls = second_web(bare)
    exact, tokens = as_long_as_estimated()
    by_requests = key(bare, "--rpm", "12")
    by_tokens = key(bare, "--tpm", str(12 * tokens), "--tokens-per-day", "100000")
    at_once = key(bare, "--concurrency", "12")
    for known in (by_requests, by_tokens, at_once):
        until_known(bare, urls, known)
    expected = {200: 12, 429: 24}
    assert flood(urls, by_requests, 36) == expected
    assert flood(urls, by_tokens, 36, exact) == expected
    told = bare.manage("usage", "--csv", "--group-by", "key")
    rows = {r["key_id"]: r for r in csv.DictReader(io.StringIO(told))}
    assert [int(r["requests"]) for r in rows.values()] == [12, 12]
    assert all(int(r["completion_tokens"]) == 4 * 12 for r in rows.values())
    assert 12 * (tokens - 4) in [int(r["prompt_tokens"]) for r in rows.values()]

    # None of those that are admitted ends before all were weighed.
    endless = {**BODY, "max_tokens": 1000, "stream": True}
    assert flood(urls, at_once, 36, endless) == expected
    bare.until(lambda: bare.slots_held() == 0, "those who left hold nothing", 20)
    assert flood(urls, at_once, 36, endless) == expected


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
