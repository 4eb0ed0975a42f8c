"""One engine's process tree, started and ended through `reaper`; and what a killed agent left over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker_agent import log, reaper

_logger = logging.getLogger(__name__)
_TAIL_BYTES = 64 * 1024


class EngineProcess:
    """A running engine. Built by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, record: Path, log_path: Path, log_from: int
    ) -> None:
        self._process, self._record, self._log_path, self._log_from = process, record, log_path, log_from

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        record: Path,
        log_path: Path,
        log_bytes: int = 16 << 20,
        grace_seconds: float = 5.0,
    ) -> EngineProcess:
        """Start `command` under a reaper. Raises `OSError` if this Python cannot be started."""
        log_from = _make_room(record, log_path)
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", reaper.__file__],
            *["--record", str(record), "--log", str(log_path), "--log-bytes", str(log_bytes)],
            *["--grace", str(grace_seconds), "--parent", str(os.getpid()), "--"],
            *command,
            stdin=asyncio.subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # a Ctrl-C at the terminal is for the agent, which then stops us in order
        )
        return cls(process, record, log_path, log_from)

    @property
    def pid(self) -> int:
        """Of the reaper; the engine's own is its child."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the whole tree has ended; the engine's exit status."""
        status = await self._process.wait()
        if self._record.exists():  # the reaper itself was killed before its work was done
            end_recorded(self._record)
        return status

    async def stop(self) -> None:
        """End the tree: SIGTERM, the grace given at the start, SIGKILL. Returns once nothing is left."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        await self.wait()

    def kill(self) -> None:
        """End the tree without grace; `wait` says when it is done."""
        if self._process.stdin is not None and self._process.returncode is None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(b"k")

    def output(self) -> list[str]:
        """The last lines this engine wrote."""
        try:
            with self._log_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._log_from if self._log_from <= size else 0  # a new file was begun meanwhile
                file.seek(max(start, size - _TAIL_BYTES))
                return file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []


def _make_room(record: Path, log_path: Path) -> int:
    """Create the folders; where in the log the new engine's lines will begin."""
    for path in (record, log_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return log_path.stat().st_size if log_path.exists() else 0


def end_recorded(record: Path, *, seconds: float = 5.0) -> int:
    """Kill every process of `record` that still lives (same pid, same start time) and all below it.

    Returns how many were found. The record is removed once they are gone.
    """
    try:
        recorded = {int(pid): int(started) for pid, started in json.loads(record.read_text())["processes"]}
    except (OSError, ValueError, KeyError, TypeError):
        recorded = {}
    found: set[int] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        everyone = reaper.parents()
        living = {pid for pid, started in recorded.items() if everyone.get(pid, (0, -1))[1] == started}
        for pid in list(living):
            for child, started in reaper.descendants(pid).items():
                recorded[child] = started
                living.add(child)
        if not living:
            break
        found |= living
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    record.unlink(missing_ok=True)
    return len(found)


def clean_leftovers(records: Path) -> None:
    """End what engines an earlier agent of this identity left behind."""
    for record in sorted(records.glob("*.json")):
        if ended := end_recorded(record):
            log.event(_logger, logging.WARNING, "ended leftovers of an earlier run", processes=ended)
