"""The life of models on the real engine (minutes): two that do not fit together, a crash, a killed agent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.journeys.cluster import ROOT, Cluster

ENGINE = ROOT / ".venv-engine" / "bin" / "python"
FOLDER = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
PATIENT = {
    "GPUTORRENT_FIRST_TOKEN_SECONDS": "120",
    "GPUTORRENT_STALL_SECONDS": "60",
    "GPUTORRENT_TOTAL_SECONDS": "300",
    "GPUTORRENT_LOAD_WAIT_SECONDS": "400",
}


def ask(cluster: Cluster, model: str):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    return cluster.post("/v1/chat/completions", body, timeout=420)


def serving(cluster: Cluster) -> set[str]:
    return {it["name"] for it in cluster.workers()["one"]["models"] if it["state"] == "ready"}


@pytest.mark.vllm
def test_two_models_that_do_not_fit_together_a_crash_and_a_killed_agent(tmp_path: Path):
    for needed in (ENGINE, FOLDER):
        if not needed.exists():
            pytest.skip(
                f"THE REAL ENGINE IS NOT TESTED: there is no {needed.relative_to(ROOT)}: run `make demo`"
            )
    room = 4 << 30
    budget = ("--vram-reserve", str(psutil.virtual_memory().total - room), "--min-residence-seconds", "0")
    needs = ("--need", "first=3GiB", "--need", "second=3GiB")
    with Cluster(tmp_path, **PATIENT) as cluster:
        agent = cluster.real_agent(
            *("one", f"first={FOLDER}", str(ENGINE)), *(*budget, *needs, "--offer", f"second={FOLDER}")
        )
        assert "Paris" in ask(cluster, "first").text
        started = time.monotonic()
        answer = ask(cluster, "second")
        print(f"\nswapped and answered in {time.monotonic() - started:.0f} s")
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.text
        cluster.until(lambda: serving(cluster) == {"second"}, "only the second is loaded", 20, agent)

        core = max(cluster.processes("one"), key=lambda it: it.memory_info().rss)  # it holds the weights
        started = time.monotonic()
        os.kill(core.pid, signal.SIGKILL)
        cluster.until(lambda: serving(cluster) == set(), "the crash is seen", 60, agent)
        print(f"crash seen in {time.monotonic() - started:.1f} s")
        cluster.until(lambda: serving(cluster) == {"second"}, "it is loaded again", 200, agent)
        assert ask(cluster, "second").status_code == 200
        print(f"serves again after {time.monotonic() - started:.0f} s")

        started = time.monotonic()
        agent.kill()
        cluster.until(lambda: cluster.processes("one") == [], "nothing of the engine is left", 20)
        print(f"nothing left after {time.monotonic() - started:.1f} s")
        for line in agent.output().splitlines():
            if "plan:" in line or "memory" in line:
                print(line)
