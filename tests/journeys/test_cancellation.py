"""Every way to end a job early stops the engine's work and brings the slot back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from gputorrent import ports
from tests.journeys.cluster import MODEL, Cluster, events
from tests.journeys.conftest import journey_database

STOPPED_SECONDS = 4.0  # it takes a fraction of one; the rest is for a busy machine
LONG = {"model": MODEL, "prompt": "one two three", "max_tokens": 2000}


class Watched:
    """A cluster of two web processes and a slow engine with one slot, and what its engine says it does."""

    def __init__(self, cluster: Cluster, second: str) -> None:
        self.cluster, self.second = cluster, second
        self.engine = f"http://127.0.0.1:{cluster.engine_port('one')}"
        self.aborted = 0

    def stats(self) -> dict[str, Any]:
        return httpx.get(f"{self.engine}/fake/stats", timeout=5).json()

    def runs(self) -> None:
        self.cluster.until(lambda: self.stats()["running"] == 1, "the engine works", 10)
        self.aborted = self.stats()["aborted"]

    def stopped(self) -> None:
        """The engine has stopped one request, soon, and nothing is held for it."""
        self.cluster.until(lambda: self.stats()["running"] == 0, "the engine has stopped", STOPPED_SECONDS)
        assert self.stats()["aborted"] == self.aborted + 1
        self.cluster.until(lambda: self.cluster.slots_held() == 0, "the slot is back", 5)

    def delete(self, job: str, url: str = "") -> dict[str, Any]:
        url = f"{url or self.cluster.url}/jobs/{job}"
        answer = httpx.delete(url, headers=self.cluster.headers, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def running_job(self) -> str:
        found: list[str] = []

        def look() -> bool:
            page = self.cluster.get("/jobs", params={"state": "running"}).json()
            found[:] = [job["id"] for job in page["data"]]
            return bool(found)

        self.cluster.until(look, "the job is in the ledger", 5)
        return found[0]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Cluster(tmp_path_factory.mktemp("cluster"), journey_database()) as cluster:
        port = ports.any_free()
        cluster.start_web(port)
        cluster.agent_ready("one", "--per-second", "5", arguments=("--slots", "1"))
        yield Watched(cluster, f"http://127.0.0.1:{port}")


class Stream:
    """A caller in a thread of its own; `seen` once the stream has ended."""

    def __init__(self, cluster: Cluster, key: str = "") -> None:
        self.first = threading.Event()
        self.id = ""
        self._pool = ThreadPoolExecutor(1)
        headers = {"Authorization": f"Bearer {key}"} if key else cluster.headers
        self._seen: Future[list[Any]] = self._pool.submit(self._read, cluster.url, headers)

    def _read(self, url: str, headers: dict[str, str]) -> list[Any]:
        lines = []
        with (
            httpx.Client(timeout=30, headers=headers) as client,
            client.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            self.id = answer.headers["x-request-id"]
            for line in answer.iter_lines():
                lines.append(line)
                if line.startswith("data: "):
                    self.first.set()
        return events(lines)

    def seen(self) -> list[Any]:
        with self._pool:
            return self._seen.result(15)


@pytest.mark.parametrize("where", ["the same process", "another process"])
def test_delete_ends_a_stream(watched: Watched, where: str):
    stream = Stream(watched.cluster)
    assert stream.first.wait(10)
    watched.runs()
    record = watched.delete(stream.id, watched.second if where == "another process" else "")
    assert (record["state"], record["error"]["code"]) == ("cancelled", "cancelled")
    watched.stopped()
    seen = stream.seen()
    assert seen[-1]["error"]["code"] == "cancelled"
    assert "[DONE]" not in seen


def test_delete_ends_what_waits_for_the_whole_answer(watched: Watched):
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(watched.cluster.post, "/v1/completions", LONG)
        watched.runs()
        job = watched.running_job()
        assert watched.delete(job, watched.second)["state"] == "cancelled"
        watched.stopped()
        answer = asking.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cancelled")


def test_delete_ends_what_waits_in_the_queue(watched: Watched):
    running = Stream(watched.cluster)
    assert running.first.wait(10)
    watched.runs()
    waiting = Stream(watched.cluster)
    watched.cluster.until(lambda: waiting.id, "it waits", 5)
    assert watched.delete(waiting.id, watched.second)["state"] == "cancelled"
    assert waiting.seen()[-1]["error"]["code"] == "cancelled"
    watched.delete(running.id)
    watched.stopped()


def test_delete_ends_an_asynchronous_job(watched: Watched):
    job = watched.cluster.post("/jobs", LONG).json()["id"]
    watched.runs()
    assert watched.delete(job, watched.second)["state"] == "cancelled"
    watched.stopped()
    assert watched.delete(job)["state"] == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves(watched: Watched, stream: bool):
    leave = threading.Event()

    def ask() -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.Client(timeout=30, headers=watched.cluster.headers) as client,
        ):
            body = {**LONG, "stream": stream}
            if not stream:
                client.post(f"{watched.cluster.url}/v1/completions", json=body, timeout=1)
                return
            with client.stream("POST", f"{watched.cluster.url}/v1/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                leave.wait(10)

    caller = threading.Thread(target=ask)
    caller.start()
    watched.runs()
    leave.set()
    caller.join()
    watched.stopped()


def test_a_key_that_is_revoked_ends_its_streams(watched: Watched):
    secret = made_key(watched.cluster)
    stream = Stream(watched.cluster, secret)
    assert stream.first.wait(10)
    watched.runs()
    watched.cluster.manage("apikey", "revoke", secret[:12])
    seen = stream.seen()
    assert seen[-1]["error"]["code"] == "invalid_api_key"
    watched.stopped()


def made_key(cluster: Cluster) -> str:
    said = cluster.manage("apikey", "create", "--name", "short-lived")
    return next(word for word in said.replace('"', " ").split() if word.startswith("sk-gt"))
