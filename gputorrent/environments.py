"""Python environments made from lock files: `.venv` for us, `.venv-engine` for vLLM.

An environment counts only with its stamp, which is written last and names the lock it was made from. Without
it (an install was interrupted, the lock changed) the environment is made anew; the downloads are cached.

Standard library only: the first run happens under a bare Python, before anything is installed.
``python -m gputorrent.environments LOCK [LOCK ...]`` makes `.venv`; the first LOCK is installed, and a stamp
of any of them is accepted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gputorrent.progress import Progress, say

ROOT = Path(__file__).resolve().parent.parent
STAMP = "gputorrent.stamp"
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


class EnvironmentFailure(RuntimeError):
    """An environment could not be made. The message says why and the remedy; `output` is pip's."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def fingerprint(lock: Path, *more: str) -> str:
    """What an environment made from this lock with this interpreter is stamped with."""
    version = ".".join(map(str, sys.version_info[:2]))
    parts = [lock.read_bytes(), version.encode(), *(text.encode() for text in more)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def stamp_of(folder: Path) -> str:
    """The stamp of an environment that is whole and whose interpreter still runs; else empty."""
    try:
        stamp = (folder / STAMP).read_text(encoding="ascii").strip()
    except OSError:
        return ""
    # The interpreter is a link: it dangles once the Python it was made from has been removed.
    return stamp if (folder / "bin" / "python").exists() else ""


def write_stamp(folder: Path, stamp: str) -> None:
    """The last step. After it the environment counts."""
    new = folder / f"{STAMP}.new"
    new.write_text(stamp, encoding="ascii")
    new.replace(folder / STAMP)


@contextlib.contextmanager
def being_made(folder: Path) -> Iterator[None]:
    """One process at a time makes this environment; the others wait and then find it made."""
    path = ROOT / ".cache" / f"{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is setting up {folder.name} ...")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_empty(folder: Path) -> Path:
    """A fresh environment in place of whatever is there. Returns its Python. Raises EnvironmentFailure."""
    if folder.exists():
        # Moved away first: should this be interrupted, no half-removed environment is left at its place.
        old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
        folder.rename(old)
        shutil.rmtree(old)
    # Not from inside our own environment's bin: the new one must stand on the interpreter below it.
    base = getattr(sys, "_base_executable", sys.executable)
    made = subprocess.run([base, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise EnvironmentFailure(
            f"{base} cannot make a virtual environment: install its venv module (Debian and Ubuntu: "
            f"apt install python{version}-venv), or set PYTHON to another Python 3.11 or newer",
            made.stdout + made.stderr,
        )
    return folder / "bin" / "python"


def pip_install(python: Path, arguments: Sequence[str], progress: Progress, *, expected: int = 0) -> None:
    """Run ``pip install`` with `arguments` and show how far it is.

    `expected` is the number of packages, if known. pip's own settings (its environment variables and
    configuration files) decide where packages come from. Raises EnvironmentFailure with pip's output.
    """
    command = [str(python), *_PIP, "install", "--progress-bar", "off", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        progress_of_pip = PipProgress(expected)
        watcher = _Watcher(python.parent.parent, progress, progress_of_pip)
        lines = []
        try:
            with watcher:
                for line in pip.stdout:
                    lines.append(line)
                    progress_of_pip.read(line)
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode != 0:
        raise EnvironmentFailure(why_pip_failed(lines), "".join(lines[-40:]))


class PipProgress:
    """How far pip is, read from what it prints."""

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.packages = 0
        self.megabytes = 0.0
        self.current = ""
        self.installing = False

    def read(self, line: str) -> None:
        if line.startswith("Collecting "):
            self.packages += 1
            self.current = line.split()[1]
        elif line.startswith("Installing collected packages"):
            self.installing = True
        else:
            size = re.search(r"\((?:\d+\.\d+/)?(\d+(?:\.\d+)?) (kB|MB|GB)\)\s*$", line)
            if size and ("Downloading" in line or "Using cached" in line):
                self.megabytes += float(size[1]) * {"kB": 0.001, "MB": 1.0, "GB": 1000.0}[size[2]]

    def describe(self, megabytes_on_disk: float) -> str:
        if self.installing:
            return f"installing {self.packages} packages, {megabytes_on_disk:,.0f} MB written"
        of = f" of {self.expected}" if self.expected else ""
        return f"fetching package {self.packages}{of} ({self.current}), {self.megabytes:,.0f} MB so far"


class _Watcher:
    """Shows progress every second or so while pip is silent, which it is for most of an install."""

    def __init__(self, folder: Path, progress: Progress, pip: PipProgress) -> None:
        self._folder, self._progress, self._pip = folder, progress, pip
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        pause = 1.0
        while not self._over.wait(pause):
            began = time.monotonic()
            size = megabytes_in(self._folder) if self._pip.installing else 0.0
            pause = max(1.0, 10 * (time.monotonic() - began))  # counting must not be the work
            self._progress.update(self._pip.describe(size))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def megabytes_in(folder: Path) -> float:
    """The size of a folder that may change while it is looked at."""
    total = 0
    todo = [str(folder)]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total / 1e6


def why_pip_failed(lines: Sequence[str]) -> str:
    """One line out of pip's output, with the remedy where there is a known one."""
    errors = [line.strip() for line in lines if line.startswith("ERROR:")]
    said = next((line for line in errors if "No matching distribution" in line), errors[-1] if errors else "")
    text = "".join(lines)
    if "No space left" in text:
        return "the disk is full"
    if any(
        sign in text for sign in ("NewConnectionError", "Name or service not known", "Temporary failure in")
    ):
        return "pip cannot reach its package index: check the network, or PIP_INDEX_URL and PIP_PROXY"
    return said.removeprefix("ERROR: ") or "pip failed"


def packages_in(lock: Path) -> int:
    """How many packages a lock file names (those for other systems included)."""
    return sum("==" in line and not line.startswith("#") for line in lock.read_text("utf-8").splitlines())


def ensure_own(folder: Path, locks: Sequence[Path]) -> bool:
    """Make `folder` from the first of `locks` unless it carries the stamp of any. True if something was done.

    Raises EnvironmentFailure.
    """
    accepted = {fingerprint(lock) for lock in locks}
    with being_made(folder):
        if stamp_of(folder) in accepted:
            return False
        python = make_empty(folder)
        lock = locks[0]
        progress = Progress(f"installing the packages of {lock.name} into {folder.name}")
        try:
            pip_install(python, ["-r", str(lock)], progress, expected=packages_in(lock))
        except BaseException:
            progress.failed()
            raise
        write_stamp(folder, fingerprint(lock))
        progress.done(f"{megabytes_in(folder):,.0f} MB")
    return True


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        sys.stderr.write("usage: python -m gputorrent.environments LOCK [LOCK ...]\n")
        return 2
    try:
        ensure_own(ROOT / ".venv", [Path(lock) for lock in arguments])
    except EnvironmentFailure as e:
        sys.stderr.write(f"{e.output}\ncould not set up .venv: {e}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the next start begins this step anew\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
