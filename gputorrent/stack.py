"""The processes of one coordinator, and of an agent beside it: what each is started with, in which order."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gputorrent.children import Child
from gputorrent.demo_model import Model
from gputorrent.embedded import EmbeddedRedisError, RedisServer
from gputorrent.environments import ROOT
from gputorrent.family import Failure, Family

_AGENTS_BUSINESS_NOT = ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "GPUTORRENT_API_KEY_PEPPER")
_READY_SECONDS = 90.0
_COMMAND_SECONDS = 600.0
_LOG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a coordinator runs: its data folder, its address, how many web processes."""

    data: Path
    host: str
    port: int
    web_processes: int = 1

    @property
    def local_url(self) -> str:
        """How this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Stack:
    """Starts the parts of one place into a family. `environment` is the coordinator's."""

    def __init__(
        self, place: Place, family: Family, environment: Mapping[str, str], *, own_logs: bool = True
    ) -> None:
        self.place = place
        self.family = family
        self.environment = {
            **environment,
            "GPUTORRENT_DATA_DIR": str(place.data),
            "PYTHONUNBUFFERED": "1",
        }
        self._own_logs = own_logs
        self._lock = -1

    def claim_data(self) -> None:
        """Make the data folder ours until this process ends. Raises Failure if it is somebody's already."""
        data = self.place.data
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(data / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise Failure(f"the data folder {data} cannot be used: {e.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise Failure(
                f"{data} is in use by process {owner}: stop it, or set GPUTORRENT_DATA_DIR to another folder"
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock = fd

    def check_settings(self) -> None:
        """Raises Failure with one line if the coordinator would refuse its settings."""
        program = (
            "import sys\n"
            "from django.core.exceptions import ImproperlyConfigured\n"
            "try:\n    import gputorrent.settings\n"
            "except ImproperlyConfigured as e:\n    sys.exit(str(e))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "bad settings")

    def start_redis(self) -> None:
        """An embedded Redis, unless REDIS_URL names one. Raises Failure."""
        if self.environment.get("REDIS_URL") or self.environment.get("REDIS_URL_FILE"):
            return
        bind = self.environment.get("GPUTORRENT_REDIS_BIND") or "127.0.0.1"
        server = RedisServer(self.place.data / "redis", persist=True, bind=bind)
        try:
            self.environment["REDIS_URL"] = server.start()
        except EmbeddedRedisError as e:
            raise Failure(str(e)) from None
        self.family.add(server.child, server.stop)

    def manage(self, *arguments: str) -> str:
        """Run a management command and return its output. Raises Failure with what it said."""
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"manage.py {arguments[0]} took more than {_COMMAND_SECONDS:.0f} s") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            last = said.splitlines()[-1:] or ["no message"]
            raise Failure(f"manage.py {arguments[0]} failed: {last[0]}", "\n".join(said.splitlines()[-25:]))
        return done.stdout

    def bootstrap(self) -> dict[str, Any]:
        """The demo's admin user, enrolment token and API key. Raises Failure."""
        said = self.manage("bootstrap", "--json")
        try:
            made: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise Failure("manage.py bootstrap did not answer in JSON") from None
        return made

    def start_web(self) -> None:
        """Start the web processes and wait until they say that they are ready. Raises Failure."""
        place = self.place
        command = web_command(place.host, place.port, place.web_processes)
        self.family.start(self._child("web", command, grace=35.0))
        self.family.wait(self._ready, _READY_SECONDS, "the start of the web process")

    def start_jobworker(self) -> None:
        """Start the process that carries deferred work. What it holds when it dies is done again, and so is
        the process."""
        command = [sys.executable, str(ROOT / "manage.py"), "jobworker"]
        child = self._child("jobworker", command, grace=10.0, on_death=signal.SIGKILL)
        self.family.start(child, again=True)

    def start_agent(self, model: Model, engine_python: Path, token: str, *extra: str) -> Child:
        """Start an agent on this machine that serves `model`. It stops vLLM itself."""
        environment = {n: v for n, v in self.environment.items() if n not in _AGENTS_BUSINESS_NOT}
        environment["GPUTORRENT_TOKEN"] = token  # not on the command line, where every user could read it
        command = [sys.executable, "-m", "worker_agent", "--coordinator", self.place.local_url]
        command += ["--model", model.argument, "--engine-python", str(engine_python)]
        command += ["--state-dir", str(self.place.data / "agent"), *extra]
        child = self._child("agent", command, grace=45.0)
        child.env = environment
        self.family.start(child)
        return child

    # -- inside ----------------------------------------------------------------------------------------
    def _child(
        self, name: str, command: list[str], grace: float, on_death: signal.Signals = signal.SIGTERM
    ) -> Child:
        log = self.place.data / "logs" / f"{name}.log" if self._own_logs else None
        if log is not None:
            log.parent.mkdir(exist_ok=True)
            if log.exists() and log.stat().st_size > _LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
        return Child(name, command, log, self.environment, ROOT, grace=grace, on_death=on_death)

    def _ready(self) -> bool:
        try:
            return get(f"{self.place.local_url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False


def web_command(host: str, port: int, processes: int = 1) -> list[str]:
    """What starts the web processes of a coordinator."""
    command = [sys.executable, "-m", "uvicorn", "gputorrent.asgi:application"]
    command += ["--http", "gputorrent.connection:Connection"]
    command += ["--host", host, "--port", str(port), "--workers", str(processes)]
    command += ["--lifespan", "on", "--no-access-log", "--no-server-header"]
    return [*command, "--timeout-graceful-shutdown", "30", "--backlog", "4096"]


def get(url: str, key: str = "") -> httpx.Response:
    """GET from the coordinator on this machine, past any proxy. Raises httpx.HTTPError."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url, headers=headers, timeout=10.0, trust_env=False)
