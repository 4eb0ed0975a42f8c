"""Parts of the coordinator die, freeze or are restarted; nobody acts, and everything comes right."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from gputorrent import ports
from gputorrent.children import Child
from tests.journeys.cluster import MODEL, Cluster, events
from tests.postgres import Server, new_database, running


class Stream:
    """A completion under way, read in the background."""

    def __init__(self, cluster: Cluster, tokens: int, url: str = "") -> None:
        self.lines: list[str] = []
        self.broke = False
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url or cluster.url, cluster.headers, tokens))
        self._thread.start()
        assert self._first.wait(20), "the stream did not begin"

    def _read(self, url: str, headers: dict[str, str], tokens: int) -> None:
        body = {"model": MODEL, "prompt": "on and on", "max_tokens": tokens, "stream": True}
        try:
            with (
                httpx.Client(timeout=60, headers=headers) as client,
                client.stream("POST", f"{url}/v1/completions", json=body) as answer,
            ):
                for line in answer.iter_lines():
                    self.lines.append(line)
                    self._first.set()
        except httpx.HTTPError:
            self.broke = True

    @property
    def job(self) -> str:
        return str(events(self.lines)[0]["id"])

    def recorded(self, cluster: Cluster) -> None:
        """Wait until its row is written, which is a moment after the first token."""
        cluster.until(lambda: cluster.job(self.job).get("status") == "running", "it is recorded", 10)

    def ended(self) -> list[Any]:
        """Its events, once it has ended in whatever way."""
        self._thread.join(90)
        assert not self._thread.is_alive(), "the stream hangs"
        return events(self.lines)


def freeze(*processes: Child | psutil.Process) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)


def thaw(*processes: Child | psutil.Process) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)


def submit(cluster: Cluster, tokens: int, prompt: str = "later") -> str:
    accepted = cluster.post("/jobs", {"model": MODEL, "prompt": prompt, "max_tokens": tokens}, timeout=8)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["id"])


def completed(cluster: Cluster, job: str, seconds: float = 40) -> dict[str, Any]:
    record = cluster.job_ended(job, seconds)
    assert record["status"] == "completed", record
    return record


def at_rest(cluster: Cluster) -> None:
    cluster.until(lambda: cluster.slots_held() == 0, "no slot is held", 30)
    cluster.until(lambda: cluster.workers()["one"]["in_flight"] == 0, "the agent runs nothing", 10)


# -- web processes -------------------------------------------------------------------------------------


@pytest.fixture
def second(bare: Cluster) -> tuple[Child, str]:
    """Another web process, and its address."""
    port = ports.any_free()
    return bare.start_web(port), f"http://127.0.0.1:{port}"


def test_jobs_of_a_killed_web_process_end_as_failed_and_the_others_go_on(bare: Cluster, second):
    web, url = second
    bare.agent_ready("one", "--per-second", "5")
    bare.routed(1, url)
    lost, kept = Stream(bare, 600, url), Stream(bare, 100)
    later = submit(bare, 20)
    lost.recorded(bare)
    web.kill()
    lost.ended()
    assert lost.broke
    record = bare.job_ended(lost.job, 40)
    assert (record["status"], record["error"]["code"]) == ("failed", "coordinator_lost")
    assert kept.ended()[-1] == "[DONE]"
    completed(bare, later)
    at_rest(bare)
    assert bare.get("/cluster/status").json()["heals"]["record"] == 1


def test_a_frozen_web_process_taken_for_dead_changes_nothing_when_it_is_back(bare: Cluster, second):
    web, url = second
    bare.agent_ready("one", "--per-second", "5")
    bare.routed(1, url)
    stream = Stream(bare, 600, url)
    stream.recorded(bare)
    freeze(web)
    try:
        record = bare.job_ended(stream.job, 40)
        assert record["error"]["code"] == "coordinator_lost"
    finally:
        thaw(web)
    assert stream.ended()[-1]["error"]["code"] == "upstream_failed"
    at_rest(bare)
    again = Stream(bare, 5, url)  # it serves as before
    assert again.ended()[-1] == "[DONE]"
    completed(bare, again.job)
    assert bare.job(stream.job) == record


# -- the jobworker -------------------------------------------------------------------------------------


@contextlib.contextmanager
def ledger_locked(cluster: Cluster) -> Iterator[None]:
    """Nobody else can write a job."""
    url = cluster.env["DATABASE_URL"]
    if url:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE jobs_job IN EXCLUSIVE MODE")
            yield
            connection.rollback()
    else:
        path = Path(cluster.env["GPUTORRENT_DATA_DIR"]) / "gputorrent.sqlite3"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")


def test_a_jobworker_killed_in_the_middle_of_a_task_loses_nothing_and_doubles_nothing(bare: Cluster, redis):
    bare.agent_ready("one")
    freeze(bare.jobworker)
    job = submit(bare, 3)
    task = f"rq:job:route-{job}-0"
    with ledger_locked(bare):
        thaw(bare.jobworker)
        bare.until(lambda: redis.hget(task, "status") == b"started", "the task has begun", 10)
        bare.jobworker.kill()
    bare.start_jobworker()
    record = completed(bare, job)
    assert len(record["attempts"]) == 1
    at_rest(bare)


@pytest.fixture
def redis(bare: Cluster) -> Iterator[Any]:
    from redis import Redis

    with Redis.from_url(bare.redis.url) as client:
        yield client


# -- Redis ---------------------------------------------------------------------------------------------


def test_a_frozen_redis_costs_errors_not_hangs_and_is_forgotten(bare: Cluster):
    bare.agent_ready("one", "--per-second", "10")
    before = submit(bare, 60)
    bare.until(lambda: bare.job(before)["status"] == "running", "it runs", 10)
    stream = Stream(bare, 120)
    freeze(bare.redis.child)
    try:
        answers: list[httpx.Response] = []
        asking = [threading.Thread(target=lambda: answers.append(ask(bare))) for _ in range(5)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert [a.status_code for a in answers] == [503] * 5
        assert {a.json()["error"]["code"] for a in answers} == {"broker_unavailable"}
    finally:
        thaw(bare.redis.child)
    assert stream.ended()[-1] == "[DONE]"
    assert len(completed(bare, before)["attempts"]) == 1
    bare.until(lambda: bare.chat("after", max_tokens=1).status_code == 200, "it serves again", 20)
    completed(bare, submit(bare, 2))
    at_rest(bare)


def ask(cluster: Cluster) -> httpx.Response:
    """Raises `httpx.TimeoutException` if nothing comes in good time."""
    return cluster.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 1}, timeout=3.5)


def test_asynchronous_jobs_outlive_a_redis_that_comes_back_empty(bare: Cluster):
    bare.agent_ready("one", "--per-second", "10", arguments=("--slots", "1"))
    runs = submit(bare, 40)
    bare.until(lambda: bare.job(runs)["status"] == "running", "one runs", 10)
    waits = submit(bare, 2)
    bare.until(lambda: bare.slots_held() == 2, "one waits on the board", 10)
    worker = bare.jobworker.pid
    bare.redis.kill()
    accepted = submit(bare, 2)
    bare.redis.start()
    for job in (runs, waits, accepted):
        completed(bare, job)
    assert bare.jobworker.alive
    assert bare.jobworker.pid == worker
    assert len(bare.job(runs)["attempts"]) == 1
    at_rest(bare)


# -- PostgreSQL ----------------------------------------------------------------------------------------


@pytest.fixture
def on_postgres(tmp_path: Path) -> Iterator[tuple[Cluster, Server]]:
    """A cluster with a database server of its own."""
    # A restart must not lose what was committed: here it is a crash.
    with running(synchronous_commit="on") as server, Cluster(tmp_path, new_database(server.url)) as cluster:
        yield cluster, server


@pytest.mark.parametrize("how", ["restarted", "frozen"])
def test_streams_outlive_an_outage_of_the_database(on_postgres, how):
    cluster, server = on_postgres
    cluster.agent_ready("one", "--per-second", "10")
    later = submit(cluster, 80)
    cluster.until(lambda: cluster.job(later)["status"] == "running", "it runs", 10)
    stream = Stream(cluster, 100)
    postgres = psutil.Process(server.child.pid)
    frozen = [postgres, *postgres.children(recursive=True)]
    if how == "restarted":
        server.stop()
    else:
        freeze(*frozen)
    try:
        meanwhile = [ask(cluster) for _ in range(3)]
        assert [a.status_code for a in meanwhile] == [200] * 3
        threading.Event().wait(4)  # longer than a node may be silent in this cluster
    finally:
        if how == "restarted":
            server.start_again()
        else:
            thaw(*frozen)
    assert stream.ended()[-1] == "[DONE]"
    for job in (stream.job, *(a.json()["id"] for a in meanwhile)):
        cluster.until(lambda j=job: "status" in cluster.job(j), "its record is written", 20)
        completed(cluster, job)
    assert len(completed(cluster, later)["attempts"]) == 1
    completed(cluster, submit(cluster, 2))
    assert cluster.workers()["one"]["incarnation"] == 1
    assert cluster.jobworker.alive
    assert all(web.alive for web in cluster.web)
    at_rest(cluster)


# -- nothing -------------------------------------------------------------------------------------------


def test_in_normal_life_nothing_is_healed(bare: Cluster):
    bare.agent_ready("one", "--per-second", "50", arguments=("--slots", "4"))
    bare.agent_ready("two", "--per-second", "50", arguments=("--slots", "4"))
    bare.routed(2)
    long = [Stream(bare, 1100), Stream(bare, 1100)]  # longer than anything is waited for
    for _ in range(5):
        jobs = [submit(bare, 5) for _ in range(6)]
        answers = [
            threading.Thread(target=bare.chat, args=("hello",), kwargs={"max_tokens": 20}) for _ in range(12)
        ]
        for thread in answers:
            thread.start()
        for _ in range(3):
            with contextlib.suppress(httpx.ReadTimeout):  # callers who leave
                bare.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 500}, timeout=0.5)
        for thread in answers:
            thread.join()
        for job in jobs:
            completed(bare, job)
    assert [stream.ended()[-1] for stream in long] == ["[DONE]"] * 2
    bare.until(lambda: bare.slots_held() == 0, "no slot is held", 15)
    heals = bare.get("/cluster/status").json()["heals"]
    assert heals == dict.fromkeys(heals, 0)
    assert set(heals) >= {"slot", "waiter", "lost_work", "unwanted_work", "record", "board"}
