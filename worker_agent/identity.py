"""Who this agent is to a coordinator: node id and secret, kept in a file that its user alone can read.

Each agent on a host holds one slot (a folder, locked while it runs): the second agent of a host takes the
next, and after a restart both find themselves again.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_agent.errors import Preflight

_MOST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Credential:
    """What the coordinator gave at enrolment. `chosen_name` is the --name it was enrolled with, if any."""

    node: str
    secret: str
    chosen_name: str = ""

    def __repr__(self) -> str:
        return f"Credential(node={self.node!r}, secret=...)"


class Identity:
    """One slot, held from `take` to `release` (or the end of the process)."""

    def __init__(self, folder: Path, number: int, lock: int, coordinator: str, chosen_name: str) -> None:
        self.folder, self.number = folder, number
        self._lock, self._coordinator, self._chosen_name = lock, coordinator, chosen_name

    @property
    def name(self) -> str:
        """The node's name: the one chosen, else the host's, with a number from the second agent on."""
        if self._chosen_name:
            return self._chosen_name
        return default_name() if self.number == 1 else f"{default_name()[:58]}-{self.number}"

    @property
    def credential(self) -> Credential | None:
        """What is stored for this coordinator."""
        return _read(self.folder).get(self._coordinator)

    def keep(self, node: str, secret: str) -> None:
        """Store a new credential for this coordinator, all or nothing."""
        stored = _read(self.folder)
        stored[self._coordinator] = Credential(node, secret, self._chosen_name)
        _write(self.folder, stored)

    def forget(self) -> None:
        """Drop the credential: the coordinator does not know it."""
        stored = _read(self.folder)
        if stored.pop(self._coordinator, None) is not None:
            _write(self.folder, stored)

    def release(self) -> None:
        """Let another agent have the slot."""
        os.close(self._lock)


def default_name() -> str:
    """The host's name, as far as it can be a node's name."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().split(".")[0]).strip("-._")
    return cleaned[:60] or "node"


def take(state_dir: Path, coordinator: str, chosen_name: str = "") -> Identity:
    """Hold the first free slot that suits: the one enrolled under the same --name, else one not enrolled.

    Raises `Preflight` if the state folder cannot be written.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fitting = [_fits(_read(folder).get(coordinator), chosen_name) for folder in _folders(state_dir)]
        for wanted in ("same", "empty"):
            for number, (folder, fit) in enumerate(zip(_folders(state_dir), fitting, strict=True), start=1):
                if fit == wanted and (lock := _try_lock(folder)) is not None:
                    return Identity(folder, number, lock, coordinator, chosen_name)
    except OSError as error:
        raise Preflight(
            f"cannot use {state_dir} for state ({error.strerror}): choose another with --state-dir"
        ) from error
    raise Preflight(f"{_MOST_SLOTS} agents already use {state_dir}: give this one another with --state-dir")


def _folders(state_dir: Path) -> Iterator[Path]:
    return (state_dir / f"identity-{number}" for number in range(1, _MOST_SLOTS + 1))


def _fits(stored: Credential | None, chosen_name: str) -> str:
    if stored is None:
        return "empty"
    return "same" if stored.chosen_name == chosen_name else "other"


def _try_lock(folder: Path) -> int | None:
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _read(folder: Path) -> dict[str, Credential]:
    try:
        stored = json.loads((folder / "credentials.json").read_text())
        return {url: Credential(**fields) for url, fields in stored.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        return {}  # damaged: as good as none; enrolling again repairs it


def _write(folder: Path, stored: dict[str, Credential]) -> None:
    path = folder / "credentials.json"
    fields = {
        url: {"node": it.node, "secret": it.secret, "chosen_name": it.chosen_name}
        for url, it in stored.items()
    }
    new = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(new, "w") as file:
        json.dump(fields, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path.with_suffix(".new"), path)
