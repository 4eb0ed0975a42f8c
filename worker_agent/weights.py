"""What a model's weights take on this host's disk, and how far a download of them is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker_agent.launch import ModelChoice

_SUFFIXES = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes so far, and in all (0 while that is unknown)."""

    done: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1; 0 while the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def on_disk(choice: ModelChoice, environment: Mapping[str, str]) -> int:
    """Bytes of weights of a local folder, or of the newest copy in the Hugging Face cache; 0 if unknown.

    The same weights in two formats count once: an engine loads one of them.
    """
    folder = Path(choice.source) if choice.is_local else _snapshot(_repository(choice, environment))
    if folder is None:
        return 0
    sizes = dict.fromkeys(_SUFFIXES, 0)
    for path in _files(folder):
        if path.suffix in sizes:
            sizes[path.suffix] += _size(path)
    return next((size for size in sizes.values() if size), 0)


def downloading(choice: ModelChoice, environment: Mapping[str, str]) -> Download | None:
    """How far a download into the Hugging Face cache is; None if none is under way."""
    if choice.is_local:
        return None
    repository = _repository(choice, environment)
    blobs = _files(repository / "blobs")
    if not any(path.name.endswith(".incomplete") for path in blobs):
        return None
    return Download(sum(map(_size, blobs)), _total(repository))


def _repository(choice: ModelChoice, environment: Mapping[str, str]) -> Path:
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    cache = environment.get("HF_HUB_CACHE") or f"{home}/hub"
    return Path(cache).expanduser() / ("models--" + choice.source.replace("/", "--"))


def _snapshot(repository: Path) -> Path | None:
    try:
        snapshots = [path for path in (repository / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return None
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _total(repository: Path) -> int:
    """What the index of the weights says they are in all."""
    snapshot = _snapshot(repository)
    for path in _files(snapshot) if snapshot else []:
        if path.name.endswith(".index.json"):
            try:
                return int(json.loads(path.read_text())["metadata"]["total_size"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return 0


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
