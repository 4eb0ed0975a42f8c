"""The launcher with real processes; only the engine is the stand-in."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import psutil
import pytest

from gputorrent import ports
from gputorrent.environments import ROOT
from tests.fake_vllm import write_wrapper
from tests.launcher.test_children import until

MARK = "LAUNCHER_TEST_MARK"
START_SECONDS = 120


class Launcher:
    """One ``python -m gputorrent``; `mark` is in the environment of everything it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.output = folder / "output"
        self.data = folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        kept = ("GPUTORRENT_", "FAKE_VLLM_", "DJANGO_")
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(kept)}
        for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "PORT", "HOST", "WORKERS"):
            self.environment.pop(name, None)
        self.environment |= {
            MARK: self.mark,
            "GPUTORRENT_DATA_DIR": str(self.data),
            "MODEL": f"small={model}",
        }

    def start(self, *arguments: str, engine: tuple[str, ...] = (), **environment: str) -> None:
        wrapper = write_wrapper(self.folder / "engine", *engine)
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gputorrent", *arguments],
                cwd=ROOT,
                env={**self.environment, "ENGINE_PYTHON": str(wrapper), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def until_it_says(self, text: str) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def ends(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            left = "\n".join(f"{p.pid} {p.status()} {p.cmdline()}" for p in self.living())
            pytest.fail(f"it did not end. It said:\n{self.said()}\nWhat runs:\n{left}")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def living(self) -> list[psutil.Process]:
        """Everything that was started here and still runs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def named(self, word: str, *, but: int = 0) -> psutil.Process:
        """The process with this argument or program, once there is one (with another pid than `but`).

        A whole argument: an engine is started with ``--disable-uvicorn-access-log``, and comes before uvicorn
        in the list once the system's pids have begun again from below.
        """
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [p for p in self.living() if p.pid != but and _says(p, word)]
            return bool(found)

        until(look, START_SECONDS)
        return found[0]


def _says(process: psutil.Process, word: str) -> bool:
    try:
        return any(word == part or part.endswith(f"/{word}") for part in process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


@pytest.fixture
def launcher(tmp_path):
    launcher = Launcher(tmp_path)
    yield launcher
    for process in launcher.living():
        process.kill()
    if launcher.process is not None:
        launcher.process.wait()


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_smoke_answers_with_one_json_line_and_leaves_nothing(launcher):
    launcher.start("smoke")
    assert launcher.ends() == 0, launcher.said()
    result = last_json(launcher.said())
    assert result["ok"] is True
    assert result["model"] == "small"
    assert result["answer"]
    assert result["ttft_ms"] > 0
    assert set(result) == {"ok", "model", "answer", "ttft_ms", "tokens_per_s", "seconds_total"}
    assert launcher.living() == []


def test_smoke_says_why_a_model_does_not_load(launcher):
    launcher.start("smoke", engine=("--fail-load", "out of luck"))
    assert launcher.ends() == 1
    result = last_json(launcher.said())
    assert result["ok"] is False
    assert "agent exited" in result["reason"]
    assert "out of luck" in launcher.said()
    assert "Traceback" not in launcher.said()
    assert launcher.living() == []


def test_nothing_is_left_when_whoever_reads_the_output_leaves(launcher):
    write_wrapper(launcher.folder / "engine")
    environment = {**launcher.environment, "ENGINE_PYTHON": str(launcher.folder / "engine")}
    command = [sys.executable, "-m", "gputorrent", "smoke"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        launcher.process = process
        assert process.stdout is not None
        while "coordinator ready" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        assert process.wait(START_SECONDS) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert launcher.living() == []


def test_ctrl_c_ends_a_demo_without_a_trace(launcher):
    port = ports.any_free()
    launcher.start("demo", "--port", str(port))
    launcher.until_it_says("Ctrl-C stops everything.")
    assert "first token after" in launcher.said()
    assert launcher.named("fake_vllm.py").is_running()
    for secret in (launcher.data / "redis" / "redis.password", launcher.data / "secret_key"):
        assert secret.read_text() not in launcher.said()

    launcher.signal(signal.SIGINT)
    assert launcher.ends() == 0, launcher.said()
    assert launcher.living() == []
    assert ports.is_free(port)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_launcher_that_is_killed_takes_everything_with_it(launcher):
    launcher.start("demo", "--port", str(ports.any_free()))
    launcher.until_it_says("Ctrl-C stops everything.")
    launcher.signal(signal.SIGKILL)
    launcher.ends()
    until(lambda: launcher.living() == [], START_SECONDS)


def test_a_child_that_dies_is_named_and_ends_the_demo_but_the_jobworker_is_started_again(launcher):
    launcher.start("demo", "--port", str(ports.any_free()))
    launcher.until_it_says("Ctrl-C stops everything.")
    first = launcher.named("jobworker")
    first.kill()
    launcher.until_it_says("jobworker was ended by SIGKILL: starting it again")
    launcher.named("jobworker", but=first.pid)
    launcher.named("uvicorn").kill()
    assert launcher.ends() == 1
    assert "web was ended by SIGKILL" in launcher.said()
    assert launcher.living() == []


def test_up_refuses_production_without_a_secret_in_one_line(launcher):
    launcher.start("up", "--port", str(ports.any_free()))
    assert launcher.ends() == 1
    assert launcher.said().startswith("SECRET_KEY is missing or too weak for production")
    assert len(launcher.said().splitlines()) == 1
    assert launcher.living() == []


def test_up_serves_until_it_is_told_to_stop(launcher):
    port = ports.any_free()
    launcher.start("up", "--port", str(port), "--host", "127.0.0.1", SECRET_KEY=uuid.uuid4().hex * 2)
    launcher.until_it_says("createsuperuser")
    assert f"coordinator (production) on 127.0.0.1 port {port}" in launcher.said()
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200

    rival = subprocess.run(
        [sys.executable, "-m", "gputorrent", "up", "--port", str(ports.any_free())],
        cwd=ROOT,
        env={**launcher.environment, "SECRET_KEY": uuid.uuid4().hex * 2},
        capture_output=True,
        text=True,
        check=False,
    )
    assert rival.returncode == 1
    assert launcher.process is not None
    assert f"is in use by process {launcher.process.pid}" in rival.stderr

    launcher.signal(signal.SIGTERM)
    assert launcher.ends() == 0, launcher.said()
    assert launcher.living() == []
    assert ports.is_free(port)


def test_a_port_that_is_taken_is_refused_by_name(launcher):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        launcher.start("demo", "--port", str(port))
        assert launcher.ends() == 1
    assert f"port {port} on 127.0.0.1 is in use" in launcher.said()


def test_ports_that_make_no_sense_are_refused_in_one_line(launcher):
    launcher.environment["GPUTORRENT_PORTS"] = "many"
    launcher.start("up")
    assert launcher.ends() == 1
    assert "GPUTORRENT_PORTS must be two ports" in launcher.said()
    assert "Traceback" not in launcher.said()
