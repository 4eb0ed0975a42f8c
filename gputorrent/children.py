"""Child processes of the launcher: each in a process group of its own, none outliving us or its own leader.

Start and stop them from the thread that lives as long as the process (see `tied`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gputorrent.tied import tied

_LOOK_SECONDS = 0.05
_GROUP_SECONDS = 5.0


def never() -> bool:
    """Nobody is in a hurry."""
    return False


@dataclass
class Child:
    """One process: its command, where its output goes, and how it is told to end.

    Output is appended to `log`, or goes where ours goes if that is None. `grace` is how many seconds it gets
    after `stop_signal` before SIGKILL. `on_death` is the signal it gets from the kernel when this process
    dies without stopping it. `account` is a user and group id to run as.
    """

    name: str
    command: Sequence[str | os.PathLike[str]]
    log: Path | None
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    stdin: bytes = b""
    grace: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM
    on_death: signal.Signals = signal.SIGTERM
    account: tuple[int, int] | None = None
    pass_fds: tuple[int, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log_start: int = 0

    def start(self) -> None:
        """Start it. Raises OSError when the log cannot be written."""
        fd = -1
        if self.log is not None:
            fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._log_start = os.fstat(fd).st_size
        try:
            self._process = subprocess.Popen(
                tied(self.command, self.on_death, self.account),
                stdin=subprocess.PIPE if self.stdin else subprocess.DEVNULL,
                stdout=None if fd < 0 else fd,
                stderr=None if fd < 0 else subprocess.STDOUT,
                env=None if self.env is None else dict(self.env),
                cwd=self.cwd,
                # A group of its own: the terminal's Ctrl-C reaches the launcher alone, which then decides.
                start_new_session=True,
                pass_fds=self.pass_fds,
            )
        finally:
            if fd >= 0:
                os.close(fd)
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(self.stdin)
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it ended at once; whoever waits for it will see

    @property
    def pid(self) -> int:
        """Raises RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs or before it was started; minus the number of a signal that ended it."""
        return None if self._process is None else self._process.poll()

    def output(self, limit: int = 64_000) -> str:
        """What it has written since this start, at most the last `limit` bytes; empty without a log."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as f:
                end = f.seek(0, os.SEEK_END)
                f.seek(max(self._log_start, end - limit))
                return f.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def ending(self) -> str:
        """How it ended, in words."""
        status = self.exit_status
        if status is None:
            return "is running"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def stop(self, hurry: Callable[[], bool] = never) -> bool:
        """`stop_signal`, `grace` seconds, SIGKILL; then whatever it left in its group.

        True if everything went by itself. `hurry` is asked again and again; once true, the grace is over.
        """
        process = self._process
        if process is None:
            return True
        willing = True
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            if not _until(lambda: process.poll() is not None, self.grace, hurry):
                willing = False
                self._signal_group(signal.SIGKILL)
                process.wait()
        if self._signal_group(signal.SIGTERM) and not _until(self._group_gone, _GROUP_SECONDS, hurry):
            willing = False
            self._signal_group(signal.SIGKILL)
            _until(self._group_gone, _GROUP_SECONDS, never)
        return willing

    def kill(self) -> None:
        """SIGKILL to the process alone, and wait: for tests of what a sudden death leaves behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _signal_group(self, number: int) -> bool:
        # Our child is the leader of its session, so its group carries its pid for as long as a member lives.
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            return False
        return True

    def _group_gone(self) -> bool:
        return not self._signal_group(0)


def _until(done: Callable[[], bool], seconds: float, hurry: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if hurry() or time.monotonic() >= deadline:
            return done()
        time.sleep(_LOOK_SECONDS)
    return True
