"""A whole cluster of real processes on loopback: Redis, web, jobworker, agents with the fake engine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from gputorrent import ports
from gputorrent.children import Child
from gputorrent.embedded import RedisServer
from gputorrent.stack import web_command
from tests.fake_vllm import write_wrapper

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "fake-model"

FAST = {
    # Everything that takes seconds in production takes fractions of them here.
    "GPUTORRENT_HEARTBEAT_SECONDS": "0.5",
    "GPUTORRENT_LEASE_REFRESH_SECONDS": "0.3",
    "GPUTORRENT_LEASE_SECONDS": "1.5",
    "GPUTORRENT_UNHEALTHY_AFTER_SECONDS": "3",
    "GPUTORRENT_SWEEP_SECONDS": "0.5",
    "GPUTORRENT_FIRST_TOKEN_SECONDS": "10",
    "GPUTORRENT_STALL_SECONDS": "4",
    "GPUTORRENT_TOTAL_SECONDS": "60",
    "GPUTORRENT_QUEUE_SECONDS": "10",
}


_migrated: list[bytes] = []
"""SQLite's file as the first cluster's migrations left it."""


class Cluster:
    """Use as a context manager. Ends only processes it started."""

    def __init__(self, folder: Path, database_url: str = "", **env: str) -> None:
        self.folder = folder
        self.redis = RedisServer(folder / "redis")
        self.port = ports.any_free()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("GPUTORRENT_", "FAKE_VLLM_", "DJANGO_"))
            },
            "GPUTORRENT_DATA_DIR": str(folder / "data"),
            "DATABASE_URL": database_url,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            **FAST,
            **env,
        }
        self.children: list[Child] = []
        self.web: list[Child] = []
        self.key = self.token = ""

    # -- start and stop ------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self.env["REDIS_URL"] = self.redis.start()
            self._migrate()
            made = json.loads(self.manage("bootstrap", "--json"))
            self.key, self.token = made["api_key"], made["enrolment_token"]
            self.admin_password = made["admin_password"]
            self.start_jobworker()  # it gets ready while the web process does
            self.start_web()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _migrate(self) -> None:
        """Make the tables; of SQLite's the first cluster makes them, and the others get a copy."""
        database = Path(self.env["GPUTORRENT_DATA_DIR"]) / "gputorrent.sqlite3"
        if _migrated and not self.env["DATABASE_URL"]:
            database.parent.mkdir(parents=True, exist_ok=True)
            database.write_bytes(_migrated[0])
            return
        self.manage("migrate", "-v", "0")
        if not self.env["DATABASE_URL"]:
            _migrated.append(database.read_bytes())

    def __exit__(self, *_: object) -> None:
        for child in reversed(self.children):
            child.stop()
        self.redis.stop()

    def start(self, name: str, command: list[Any], grace: float = 10, **env: str) -> Child:
        log = self.folder / f"{name}-{len(self.children)}.log"
        child = Child(name, command, log, env={**self.env, **env}, cwd=ROOT, grace=grace)
        child.start()
        self.children.append(child)
        return child

    def start_web(self, port: int | None = None) -> Child:
        port = port or self.port
        command = web_command("127.0.0.1", port)
        web = self.start("web", [*command, "--log-level", "warning"])
        self.web.append(web)
        self.until(lambda: self.ready(port), "web is ready", 30, web)
        return web

    def start_jobworker(self) -> Child:
        self.jobworker = self.start("jobworker", [sys.executable, ROOT / "manage.py", "jobworker"])
        return self.jobworker

    def start_agent(
        self, name: str, *flags: str, model: str = MODEL, arguments: tuple[str, ...] = ()
    ) -> Child:
        """An agent with a fake engine; `flags` are the engine's knobs, `arguments` the agent's own."""
        wrapper = write_wrapper(self.folder / f"engine-{name}", *flags)
        command = [sys.executable, "-m", "worker_agent", "--coordinator", self.url, "--name", name]
        command += ["--model", model, "--engine-python", str(wrapper), "--grace-seconds", "3"]
        command += ["--state-dir", str(self.folder / f"state-{name}"), *arguments]
        return self.start(
            f"agent-{name}", command, grace=20, GPUTORRENT_TOKEN=self.token, CLUSTER_AGENT=self._mark(name)
        )

    def agent_ready(self, name: str, *flags: str, **how: Any) -> Child:
        agent = self.start_agent(name, *flags, **how)
        model = how.get("model", MODEL)
        self.until(lambda: self.serves(name, model), f"{name} serves {model}", 30, agent)
        return agent

    def real_agent(self, name: str, model: str, engine_python: str, *arguments: str) -> Child:
        """An agent with the real engine; returns once the model is served (minutes)."""
        command = [sys.executable, "-m", "worker_agent", "--coordinator", self.url, "--name", name]
        command += ["--model", model, "--engine-python", engine_python]
        command += ["--max-model-len", "2048", "--engine-args=--enforce-eager"]
        command += ["--state-dir", str(self.folder / f"state-{name}"), *arguments]
        agent = self.start(
            f"agent-{name}", command, 60, GPUTORRENT_TOKEN=self.token, CLUSTER_AGENT=self._mark(name)
        )
        model = model.partition("=")[0]
        self.until(lambda: self.serves(name, model), f"{name} serves {model}", 400, agent)
        return agent

    def engine_port(self, name: str) -> int:
        """Where the engine of an agent listens, by what its command line says."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.Error, ValueError, IndexError):
                line = process.cmdline()
                return int(line[line.index("--port") + 1])
        raise AssertionError(f"{name} has no engine")

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py", *arguments],
            env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # -- look ----------------------------------------------------------------------------------------

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=10, **kwargs)

    def post(self, path: str, body: dict[str, Any], timeout: float = 30) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=timeout)

    def chat(self, text: str, **more: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", body)

    def ready(self, port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def workers(self) -> dict[str, Any]:
        return {w["name"]: w for w in self.get("/workers").json()["data"]}

    def serves(self, name: str, model: str = MODEL) -> bool:
        """Whether the routing of the web process has the node, and its model is ready."""
        worker = self.workers().get(name)
        if not worker or worker["state"] != "online":
            return False
        if not any(m["name"] == model and m["state"] == "ready" for m in worker["models"]):
            return False
        return any(m["id"] == model for m in self.get("/v1/models").json()["data"])

    def routes(self, model: str) -> bool:
        """Whether the routing of the web process has a node that offers it, in whatever state; the registry
        has it one refresh earlier."""
        return any(m["id"] == model for m in self.get("/cluster/status").json()["models"])

    def routed(self, nodes: int, *urls: str, model: str = MODEL) -> None:
        """Wait until web processes (the first, unless others are named) send requests for a model to so many
        nodes. Each sees a new one at a look of its own, and a model on one node before it is on two."""
        asked = urls or (self.url,)
        everywhere = [nodes] * len(asked)
        self.until(lambda: [self._ready(url, model) for url in asked] == everywhere, f"{nodes} nodes", 10)

    def _ready(self, url: str, model: str) -> int:
        status = httpx.get(f"{url}/cluster/status", headers=self.headers, timeout=10).json()
        return sum(m["nodes_ready"] for m in status["models"] if m["id"] == model)

    def job(self, job_id: str) -> dict[str, Any]:
        return self.get(f"/jobs/{job_id}").json()

    def job_ended(self, job_id: str, seconds: float = 15) -> dict[str, Any]:
        """The job's record, once it has ended."""
        ends = ("completed", "failed", "cancelled", "expired")
        self.until(lambda: self.job(job_id).get("status") in ends, f"job {job_id} ends", seconds)
        return self.job(job_id)

    def until(self, true: Callable[[], Any], what: str, seconds: float, child: Child | None = None) -> None:
        """Wait until something holds. The limit is for a broken build; nothing is timed here."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if true():
                    return
            except httpx.TransportError as e:
                raise AssertionError(f"not so: {what}: {e!r}\n{self._logs()}") from e
            if child is not None and not child.alive:
                raise AssertionError(
                    f"not so: {what}: {child.name} {child.ending()}\n{child.output()[-4000:]}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"not so after {seconds} s: {what}\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        """How each process is, and the end of what it wrote."""
        return "\n".join(f"--- {c.name} {c.ending()}\n{c.output()[-3000:]}" for c in self.children)

    def slots_held(self) -> int:
        status = self.get("/cluster/status").json()
        return sum(m["in_flight"] for m in status["models"]) + status["waiting"]

    def _mark(self, agent: str) -> str:
        return f"{self.folder}:{agent}"

    def processes(self, agent: str) -> list[psutil.Process]:
        """Every process on the machine that this agent of this cluster started, and the agent itself."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # Not one of the agent's own variables: those it keeps from its engines.
                if process.environ().get("CLUSTER_AGENT") == self._mark(agent):
                    found.append(process)
        return found


def events(lines: Any) -> list[Any]:
    """The data of server-sent events, parsed; `[DONE]` stays a string."""
    found = []
    for line in lines:
        if match := re.fullmatch(r"data: (.*)", line):
            found.append(match[1] if match[1] == "[DONE]" else json.loads(match[1]))
    return found
