"""What becomes of an engine and of its work when it crashes, hangs, lacks memory, or is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from gputorrent import ports
from tests.journeys.cluster import MODEL, ROOT, Cluster, events
from tests.journeys.test_faults import stream

QUICK = ("--canary-seconds", "1", "--abort-seconds", "1")


def model(cluster: Cluster, name: str = MODEL):
    return next(it for it in cluster.workers()["one"]["models"] if it["name"] == name)


def starts(agent) -> int:
    return agent.output().count("starting engine")


def engine(cluster: Cluster) -> psutil.Process:
    """The engine's own process: it listens on the port."""
    port = str(cluster.engine_port("one"))
    listening = (
        it for it in cluster.processes("one") if port in it.cmdline() and "reaper.py" not in str(it.cmdline())
    )
    return next(listening)


def test_a_killed_engine_fails_its_work_with_the_reason_and_is_started_again(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "5", "--children")
    with stream(bare, "cut me off", 200) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        began = time.monotonic()
        engine(bare).kill()
        seen = events([first, *lines])
    assert seen[-1]["error"]["code"] == "upstream_failed"
    attempt = bare.job_ended(seen[0]["id"])["attempts"][0]
    assert attempt["outcome"] == "engine_died"
    bare.until(lambda: starts(agent) == 2, "it is started again", 20, agent)
    bare.until(lambda: bare.chat("again", max_tokens=1).status_code == 200, "it serves again", 20, agent)
    print(f"crash: serving again after {time.monotonic() - began:.1f} s")
    assert "signal 9" in agent.output()


def test_an_engine_that_hangs_with_a_healthy_health_is_killed_and_started_again(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "20", "--hang-after-tokens", "10", arguments=QUICK)
    with stream(bare, "hang on", 200) as answer:
        began = time.monotonic()
        seen = events(answer.iter_lines())
    assert seen[-1]["error"]["code"] == "upstream_failed"
    attempt = bare.job_ended(seen[0]["id"])["attempts"][0]
    assert attempt["outcome"] in {"engine_died", "stalled"}
    bare.until(lambda: starts(agent) == 2, "it is started again", 20, agent)
    bare.until(lambda: bare.chat("again", max_tokens=1).status_code == 200, "it serves again", 20, agent)
    print(f"hang: serving again after {time.monotonic() - began:.1f} s")
    assert "engine hangs, killing it" in agent.output()
    assert "its memory is back" in agent.output()


def test_a_slow_engine_is_not_taken_for_one_that_hangs(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "0.5", arguments=QUICK)
    assert bare.chat("slowly", max_tokens=4).status_code == 200
    assert starts(agent) == 1


def test_an_engine_that_goes_on_with_cancelled_work_is_started_again_once_it_has_no_other(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "20", "--ignore-abort", arguments=QUICK)
    with stream(bare, "stay", 80) as good:
        lines = good.iter_lines()
        first = next(lines)
        with stream(bare, "leave", 1500) as answer:
            next(answer.iter_lines())
        rest = events([first, *lines])
    assert rest[-1] == "[DONE]", "good work is not hurt for what becomes of cancelled work"
    bare.until(lambda: starts(agent) == 2, "it is started again", 20, agent)
    assert "cut off" in agent.output()
    bare.until(lambda: bare.chat("again", max_tokens=1).status_code == 200, "it serves again", 20, agent)


def test_want_of_memory_at_load_is_told_and_not_tried_for_ever(bare: Cluster):
    words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    agent = bare.start_agent("one", "--fail-load", words)
    bare.until(
        lambda: "one" in bare.workers() and model(bare)["state"] == "failed", "it has failed", 20, agent
    )
    assert "out of memory" in model(bare)["reason"]
    answer = bare.chat("hello")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_unavailable"
    assert "out of memory" in answer.json()["error"]["message"]
    bare.post("/workers/one/models/load", {"model": MODEL})
    bare.until(lambda: "not loading a model" in agent.output(), "it rests first", 10, agent)
    assert starts(agent) == 1
    assert agent.alive


# -- an engine that is not ours ----------------------------------------------------------------------------


class Foreign:
    """A server that somebody else runs: it knows nothing of our ids, and calls its model something else."""

    def __init__(self) -> None:
        self.port = ports.any_free()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--model", "theirs:8b", "--port", str(self.port), "--ignore-request-id"]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fake_vllm.py"), *words], stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    server = Foreign()
    yield server
    server.kill()


def test_an_engine_that_already_runs_is_served_watched_and_left_alone(bare: Cluster, foreign: Foreign):
    url = f"ours=theirs:8b@http://127.0.0.1:{foreign.port}"
    command = [sys.executable, "-m", "worker_agent", "--coordinator", bare.url, "--name", "one"]
    command += ["--engine-url", url, "--state-dir", str(bare.folder / "state"), "--canary-seconds", "1"]
    agent = bare.start("agent-one", command, GPUTORRENT_TOKEN=bare.token)
    bare.until(
        lambda: "one" in bare.workers() and model(bare, "ours")["state"] == "failed", "it waits", 20, agent
    )
    assert "does not accept connections" in model(bare, "ours")["reason"]
    foreign.start()
    bare.until(lambda: bare.serves("one", "ours"), "it is found", 20, agent)

    body = {"model": "ours", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 3}
    whole = bare.post("/v1/chat/completions", body).json()
    assert whole["model"] == "ours"
    assert bare.job_ended(whole["id"])["status"] == "completed"
    assert whole["choices"][0]["message"]["content"] == "a b c"
    with httpx.stream(
        "POST", f"{bare.url}/v1/chat/completions", json={**body, "stream": True}, headers=bare.headers
    ) as answer:
        seen = events(answer.iter_lines())
    assert seen[-1] == "[DONE]"
    assert {it["model"] for it in seen[:-1]} == {"ours"}
    (chat_id,) = {it["id"] for it in seen[:-1]}
    assert bare.job_ended(chat_id)["status"] == "completed"
    assert "theirs" not in json.dumps(seen)

    foreign.kill()
    bare.until(lambda: model(bare, "ours")["state"] == "failed", "its end is seen", 20, agent)
    assert bare.post("/v1/chat/completions", body).json()["error"]["code"] == "model_unavailable"
    foreign.start()
    bare.until(lambda: bare.serves("one", "ours"), "it is back", 20, agent)
    assert bare.post("/v1/chat/completions", body).status_code == 200
    agent.stop()
    assert foreign.process is not None
    assert foreign.process.poll() is None, "it is not ours to end"
