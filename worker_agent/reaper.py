"""Runs one engine and leaves nothing of it behind. A program of its own; standard library only.

``python reaper.py --record FILE --log FILE --log-bytes N --grace SECONDS -- COMMAND...``

An engine is a tree of processes: killing the first leaves the others, and their GPU memory, alive. This
small process sits between agent and engine. It adopts whatever the engine orphans (child subreaper), keeps a
record of the living on disk for the case that it is killed itself, bounds the engine's log, and ends the
whole tree when the agent says so (SIGTERM), when the agent is gone (end of file on standard input, or the
parent-death signal), or when the engine's first process ends. It exits with the engine's own status
(128 + number for a signal).

The agent may write ``k`` to standard input: no grace, kill at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import BinaryIO

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
RECORD_SECONDS = 2.0
ORPHAN_SECONDS = 0.5


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the pipe from the agent and the process group must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def parents() -> dict[int, tuple[int, int]]:
    """Every process that is not a zombie: pid -> (parent, start time in clock ticks since boot)."""
    found: dict[int, tuple[int, int]] = {}
    if not os.path.isdir("/proc/self"):
        return found
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if fields[0] not in (b"Z", b"X"):
            found[int(entry)] = (int(fields[1]), int(fields[19]))
    return found


def descendants(root: int) -> dict[int, int]:
    """Everything below `root`: pid -> start time."""
    everyone = parents()
    children: dict[int, list[int]] = {}
    for pid, (parent, _started) in everyone.items():
        children.setdefault(parent, []).append(pid)
    found: dict[int, int] = {}
    todo = list(children.get(root, []))
    while todo:
        pid = todo.pop()
        found[pid] = everyone[pid][1]
        todo += children.get(pid, [])
    return found


class BoundedLog:
    """Appends the engine's output; at half of the limit the file becomes ``.1`` and a new one starts."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self.limit = path, limit
        self.file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the engine

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the engine
            # Before writing, so that the newest lines, which say why it ended, are always in the newest file.
            if self.file.tell() and self.file.tell() + len(data) > self.limit // 2:
                self.file.close()
                os.replace(self.path, self.path + ".1")
                self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            self.file.write(data)


class Reaper:
    def __init__(self, command: list[str], record: str, log: BoundedLog, grace: float) -> None:
        self.record, self.log, self.grace = record, log, grace
        self.recorded: dict[int, int] = {}
        self.kill_at: float | None = None
        self.wake, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(self.wake, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        # One thread and no locks here, so code between fork and exec is safe. The engine's first process
        # gets its own parent-death signal: it must not outlive a reaper that was killed.
        self.engine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        assert self.engine.stdout is not None
        self.output = self.engine.stdout.fileno()
        os.set_blocking(self.output, False)
        self.sources = [self.wake, self.output, 0]
        self.status: int | None = None
        self.first_gone = False

    def run(self) -> int:
        self.note()
        while True:
            ready, _, _ = select.select(self.sources, [], [], self.timeout())
            self.read(ready)
            self.collect()
            if self.status is not None and not self.first_gone:
                self.first_gone = True  # its workers cannot go on without it: a moment to end, no more
                soon = time.monotonic() + ORPHAN_SECONDS
                self.kill_at = soon if self.kill_at is None else min(soon, self.kill_at)
            self.note()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.kill_all()
            if self.status is not None and not self.recorded:
                break
        self.read([self.output])
        with contextlib.suppress(OSError):
            os.unlink(self.record)
        return self.status if self.status >= 0 else 128 - self.status

    def timeout(self) -> float:
        return RECORD_SECONDS if self.kill_at is None else 0.05

    def read(self, ready: list[int]) -> None:
        if self.output in ready and self.output in self.sources:
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self.output, 1 << 16):
                    self.log.write(data)
                self.sources.remove(self.output)
        if self.wake in ready:
            for number in os.read(self.wake, 512):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self.stop()
        if 0 in ready:
            word = os.read(0, 64)
            if word.startswith(b"k"):
                self.kill_at = time.monotonic()
            elif not word:  # the agent has closed the pipe or is no more
                self.sources.remove(0)
                self.stop()

    def stop(self) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.grace
            with contextlib.suppress(ProcessLookupError):
                self.engine.send_signal(signal.SIGTERM)

    def collect(self) -> None:
        """Reap the engine and the orphans it left us."""
        if self.status is None:
            self.status = self.engine.poll()
        while True:
            try:
                # Never reap the engine here: its status would be lost to Popen.
                done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if done is None:
                return
            if done.si_pid == self.engine.pid:
                self.status = self.engine.wait()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(done.si_pid, 0)

    def note(self) -> None:
        """Keep the record of living processes true: what the next start of the agent would have to end."""
        living = descendants(os.getpid())
        if living == self.recorded:
            return
        self.recorded = living
        with contextlib.suppress(OSError):
            with open(self.record + ".new", "w") as file:
                json.dump({"processes": sorted(living.items())}, file)
            os.replace(self.record + ".new", self.record)

    def kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.engine.pid, signal.SIGKILL)
        for pid in self.recorded:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--log-bytes", type=int, default=16 << 20)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--parent", type=int, required=True, help="pid of the agent")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != args.parent:
        return  # the agent died before we could ask to be told
    reaper = Reaper(args.command, args.record, BoundedLog(args.log, args.log_bytes), args.grace)
    sys.exit(reaper.run())


if __name__ == "__main__":
    main()
