"""A database that is frozen: streams go on, everything else is refused soon, and all is well again after."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests import postgres
from tests.journeys.cluster import MODEL, Cluster, events

pytestmark = pytest.mark.skipif(
    not os.environ.get("JOURNEY_DATABASE_URL"), reason="SQLite cannot be frozen: PostgreSQL only"
)
PATIENCE_SECONDS = 8.0  # a refusal takes 2 s; the rest is for a busy machine


@contextlib.contextmanager
def frozen(server: postgres.Server) -> Iterator[None]:
    """The server and all its backends are stopped for as long as the block lasts."""
    assert server.child
    main = psutil.Process(server.child.pid)
    stopped = [main, *main.children(recursive=True)]
    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def test_a_frozen_database(tmp_path):
    with postgres.running() as server, Cluster(tmp_path, server.url) as cluster:
        cluster.agent_ready("one", "--per-second", "10")
        known = cluster.chat("before", max_tokens=1).json()["id"]
        body = {"model": MODEL, "prompt": "on and on", "max_tokens": 100, "stream": True}
        requests = [
            ("POST", "/jobs", {"model": MODEL, "prompt": "x", "max_tokens": 1}),
            ("GET", "/jobs", None),
            ("GET", f"/jobs/{known}", None),
            ("DELETE", f"/jobs/{known}", None),
            ("GET", "/workers", None),
            ("GET", "/cluster/status", None),
        ]

        def ask(request: tuple) -> tuple[str, int, str]:
            method, path, json = request
            answer = client.request(method, cluster.url + path, json=json, timeout=PATIENCE_SECONDS)
            return f"{method} {path}", answer.status_code, answer.json().get("error", {}).get("code")

        with (
            ThreadPoolExecutor(len(requests)) as pool,
            httpx.Client(timeout=30, headers=cluster.headers) as client,
            client.stream("POST", f"{cluster.url}/v1/completions", json=body) as answer,
        ):
            lines = answer.iter_lines()
            first = next(lines)
            with frozen(server):
                for _ in range(2):  # also when the threads that ask are all stuck already
                    for name, status, code in pool.map(ask, requests):
                        assert (name, status, code) == (name, 503, "ledger_unavailable")
                # New work is taken, and the stream goes on.
                assert cluster.chat("meanwhile", max_tokens=2).status_code == 200
                assert next(line for line in lines if line).startswith("data: ")
            seen = events([first, *lines])
        assert seen[-1] == "[DONE]"
        cluster.until(lambda: cluster.ready(cluster.port), "the database is asked again", 15)
        record = cluster.job_ended(seen[0]["id"] if isinstance(seen[0], dict) else known)
        assert record["status"] == "completed"
        accepted = cluster.post("/jobs", {"model": MODEL, "prompt": "after", "max_tokens": 1})
        assert cluster.job_ended(accepted.json()["id"], 30)["status"] == "completed"
        # Nothing of those that were refused is kept.
        asynchronous = cluster.get("/jobs", params={"asynchronous": "true"}).json()["data"]
        assert [job["id"] for job in asynchronous] == [accepted.json()["id"]]
