"""What is measured: the engine alone, our coordinator before it, and vllm-router before the same engine."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.speed import engine
from benchmarks.speed.processes import Cores, Group, on
from gputorrent import environments, ports
from gputorrent.children import Child
from gputorrent.demo_model import Model
from gputorrent.environments import ROOT
from gputorrent.family import Family, Interrupts
from gputorrent.first_answer import wait_for_model
from gputorrent.stack import Place, Stack

MODEL = "mock"
SLOTS = 8192
DIRECT, OURS, ROUTER = "engine alone", "GPU Torrent", "vllm-router"
_ROUTER_LOCK = ROOT / "requirements" / "bench-vllm-router.lock"
_ROUTER_FOLDER = ROOT / ".cache" / "bench" / "vllm-router"
_LIMITS = ("--concurrency", "100000", "--rpm", "100000000", "--tpm", "1000000000000")


@dataclass(frozen=True, slots=True)
class Target:
    """An address that answers completions, and the processes between it and the engine."""

    name: str
    port: int
    key: str = "none"
    parts: Mapping[str, Group] = field(default_factory=dict)

    @property
    def gateway(self) -> Group:
        """Everything on the gateway's core."""
        return self.parts.get("gateway", Group([]))


def engine_port(agent: int) -> int:
    """Where the engine of an agent listens, by what its command line says."""
    for process in psutil.Process(agent).children(recursive=True):
        with contextlib.suppress(psutil.Error, ValueError, IndexError):
            line = process.cmdline()
            return int(line[line.index("--port") + 1])
    raise RuntimeError("the agent has no engine")


@contextlib.contextmanager
def cluster(
    cores: Cores, *, workers: int = 1, limits: bool = True, spread: bool = False
) -> Iterator[dict[str, Target]]:
    """Our own stack as ``make up`` starts it, with an agent and the mock engine: the engine alone, and ours.

    With `limits` the key has some of every kind, high enough never to bind. With `spread` nothing is pinned.
    """
    folder = Path(tempfile.mkdtemp(prefix="gputorrent-bench-"))
    family = Family(Interrupts())
    here, there = ((cores.gateway, cores.rest),) * 2 if spread else ((cores.gateway,), (cores.rest,))
    try:
        place = Place(folder, "127.0.0.1", ports.any_free(), workers)
        stack = Stack(place, family, _environment())
        with on(*here):
            stack.start_redis()
            stack.manage("migrate", "--noinput", "--verbosity", "0")
            stack.start_web()
            made = stack.bootstrap()
            stack.start_jobworker()
        create = ["apikey", "create", "--name", "bench", "--json", *(_LIMITS if limits else ())]
        key = json.loads(stack.manage(*create))["api_key"]
        ours = {child.name: child.pid for child, _ in family._members}
        model = Model(MODEL, "mock/mock")
        with on(*there):
            wrapper = engine.wrapper(folder / "engine-python")
            agent = stack.start_agent(model, wrapper, made["enrolment_token"], "--slots", str(SLOTS))
        wait_for_model(stack, family, agent, made["api_key"], model)
        port = engine_port(agent.pid)
        engines = [p.pid for p in psutil.Process(agent.pid).children(recursive=True)]
        groups = {name: Group([pid]) for name, pid in ours.items()}
        parts = {
            **groups,
            "gateway": Group(ours.values()),
            "agent": Group([agent.pid], without=engines),
        }
        yield {
            DIRECT: Target(DIRECT, port, parts={"engine": Group(engines)}),
            OURS: Target(OURS, place.port, key, parts),
        }
    finally:
        family.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Of a coordinator in production with nothing set but what must be."""
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPUTORRENT_", "DJANGO_"))}
    for name in ("DATABASE_URL", "REDIS_URL"):
        kept.pop(name, None)
    return {**kept, "GPUTORRENT_MODE": "production", "SECRET_KEY": secrets.token_hex(32)}


@contextlib.contextmanager
def vllm_router(cores: Cores, engine_at: int) -> Iterator[Target]:
    """vllm-router from PyPI before an engine, with its defaults. Raises EnvironmentFailure."""
    environments.ensure_own(_ROUTER_FOLDER, [_ROUTER_LOCK])
    folder = Path(tempfile.mkdtemp(prefix="gputorrent-bench-router-"))
    port = ports.any_free()
    command = [
        *(_ROUTER_FOLDER / "bin" / "python", "-m", "vllm_router.launch_router"),
        *("--worker-urls", f"http://127.0.0.1:{engine_at}", "--host", "127.0.0.1", "--port", str(port)),
        *("--max-concurrent-requests", str(SLOTS), "--log-level", "warning"),
        *("--prometheus-port", str(ports.any_free())),
    ]
    child = Child("vllm-router", command, folder / "log", cwd=folder, stop_signal=signal.SIGINT)
    try:
        with on(cores.gateway):
            child.start()
        _until_it_answers(child, port)
        yield Target(ROUTER, port, parts={"gateway": Group([child.pid])})
    finally:
        child.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_answers(child: Child, port: int) -> None:
    import time

    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=5)
            if answer.status_code == 200:
                return
        if not child.alive or time.monotonic() > deadline:
            raise RuntimeError(f"vllm-router does not answer: {child.output()[-2000:]}")
        time.sleep(0.2)
