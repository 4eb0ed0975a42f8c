"""Watching a stream over a WebSocket, at the web process that answers it and at another one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from gputorrent import ports
from tests.journeys.cluster import MODEL, Cluster, events
from tests.journeys.conftest import journey_database
from tests.journeys.test_cancellation import made_key


class Caller:
    """A stream in a thread of its own."""

    def __init__(self, cluster: Cluster, tokens: int) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._begun = threading.Event()
        self._id = ""
        self._seen: Future[list[Any]] = self._pool.submit(self._read, cluster, tokens)

    def _read(self, cluster: Cluster, tokens: int) -> list[Any]:
        body = {"model": MODEL, "prompt": "one two three", "max_tokens": tokens, "stream": True}
        lines = []
        with (
            httpx.Client(timeout=60, headers=cluster.headers) as client,
            client.stream("POST", f"{cluster.url}/v1/completions", json=body) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            self._id = answer.headers["x-job-id"]
            self._begun.set()
            lines += list(answer.iter_lines())
        return events(lines)

    @property
    def job(self) -> str:
        assert self._begun.wait(20)
        return self._id

    def seen(self) -> list[Any]:
        """Every event, once the stream has ended."""
        with self._pool:
            return self._seen.result(60)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, int]]:
    """A cluster, and the port of its second web process."""
    with Cluster(tmp_path_factory.mktemp("cluster"), journey_database()) as cluster:
        port = ports.any_free()
        cluster.start_web(port)
        cluster.agent_ready("one", "--per-second", "20")
        yield cluster, port


def watch(port: int, job: str, key: str, after: int = 0) -> ClientConnection:
    url = f"ws://127.0.0.1:{port}/ws/jobs/{job}?after={after}"
    return connect(url, additional_headers={"Authorization": f"Bearer {key}"}, open_timeout=20)


def rest(socket: ClientConnection, patience: float = 30) -> tuple[list[dict[str, Any]], int, str]:
    """All messages to the end, the close code and its reason."""
    seen: list[dict[str, Any]] = []
    seen.extend(json.loads(message) for message in _until_closed(socket, patience))
    assert socket.close_code
    return seen, socket.close_code, socket.close_reason or ""


def _until_closed(socket: ClientConnection, patience: float) -> Iterator[str | bytes]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield socket.recv(timeout=patience)


def chunks(messages: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [(m["seq"], m["data"]) for m in messages if m["event"] == "chunk"]


@pytest.mark.parametrize("where", ["the same process", "another process"])
def test_nothing_is_lost_or_doubled_by_coming_back(pair, where):
    cluster, second = pair
    port = second if where == "another process" else cluster.port
    caller = Caller(cluster, 60)
    seen: list[tuple[int, Any]] = []
    for _ in range(3):  # it breaks three times, each time after some chunks
        with watch(port, caller.job, cluster.key, after=len(seen)) as socket:
            wanted = len(seen) + 8
            while len(seen) < wanted:
                seen += chunks([json.loads(socket.recv(timeout=30))])
    with watch(port, caller.job, cluster.key, after=len(seen)) as socket:
        messages, code, _ = rest(socket)
    seen += chunks(messages)
    told = [event for event in caller.seen() if event != "[DONE]"]
    assert seen == list(enumerate(told, 1))
    assert (messages[-1]["event"], messages[-1]["state"], code) == ("end", "completed", 1000)
    assert messages[-1]["usage"]["completion_tokens"] == 60
    assert not [m for m in messages if m["event"] == "gap"]
    with watch(port, caller.job, cluster.key) as socket:  # and once more, after its end
        assert chunks(rest(socket)[0]) == seen


def test_a_cancellation_is_seen_and_strangers_see_nothing(pair):
    cluster, second = pair
    stranger = made_key(cluster)
    caller = Caller(cluster, 2000)
    for port in (cluster.port, second):

        def refused(port: int = port) -> bool:  # the key is new to this process
            with watch(port, caller.job, stranger) as socket:
                return rest(socket) == ([], 4404, "job_not_found")

        cluster.until(refused, "another's job is not found", 10)
        with watch(port, caller.job, "sk-gt-wrong") as socket:
            assert rest(socket) == ([], 4401, "invalid_api_key")
    with watch(second, caller.job, cluster.key) as far, watch(cluster.port, caller.job, cluster.key) as near:
        assert json.loads(far.recv(timeout=30))["event"] == "state"
        url = f"http://127.0.0.1:{second}/jobs/{caller.job}"
        assert httpx.delete(url, headers=cluster.headers, timeout=20).status_code == 200
        for socket in (far, near):
            messages, code, _ = rest(socket)
            assert (messages[-1]["state"], messages[-1]["error"]["code"], code) == (
                "cancelled", "cancelled", 1000,
            )  # fmt: skip
    assert caller.seen()[-1]["error"]["code"] == "cancelled"


def test_an_asynchronous_job_ends_with_its_result(pair):
    cluster, second = pair
    body = {"model": MODEL, "prompt": "one two three", "max_tokens": 5}
    job = cluster.post("/jobs", body).json()["id"]
    with watch(second, job, cluster.key) as socket:
        messages, code, _ = rest(socket)
    assert (messages[-1]["event"], messages[-1]["state"], code) == ("end", "completed", 1000)
    assert messages[-1]["result"]["usage"]["completion_tokens"] == 5
    assert {m["event"] for m in messages[:-1]} <= {"state"}  # none if it was fast


def test_a_process_that_stops_says_so_and_one_that_dies_is_told_by_the_ledger(pair):
    """Last: it leaves one web process."""
    cluster, second = pair
    caller = Caller(cluster, 2000)
    with watch(second, caller.job, cluster.key) as socket:
        assert json.loads(socket.recv(timeout=30))["event"] == "state"
        os.kill(cluster.web[1].pid, signal.SIGTERM)
        assert rest(socket)[1] == 1012
    cluster.until(lambda: not cluster.web[1].alive, "the process has stopped", 30)
    cluster.start_web(second)
    with watch(second, caller.job, cluster.key) as socket:
        while not chunks([json.loads(socket.recv(timeout=30))]):
            pass
        cluster.web[0].kill()
        messages, code, _ = rest(socket, 90)  # one that dies is taken for gone after some 20 s
    assert (messages[-1]["event"], code) == ("end", 1000)
    assert messages[-1]["error"]["code"] == "coordinator_lost"
    with pytest.raises(httpx.HTTPError):
        caller.seen()
