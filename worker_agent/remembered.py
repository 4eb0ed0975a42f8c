"""What earlier loads have taught: memory and seconds of each model, in a file that outlives the agent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_MOST = 500


@dataclass(frozen=True, slots=True)
class Lesson:
    """Bytes that a loaded model took, and seconds that it took to load."""

    need: int = 0
    load_seconds: float = 0.0


class Remembered:
    """Read once; written after every load. A damaged or missing file is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lessons: dict[str, Lesson] = {}
        try:
            stored = json.loads(path.read_text())
            self._lessons = {
                str(key): Lesson(int(it["need"]), float(it["load_seconds"])) for key, it in stored.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def about(self, key: str) -> Lesson:
        """What is known; zeros if nothing is."""
        return self._lessons.get(key, Lesson())

    def learn(self, key: str, lesson: Lesson) -> None:
        """Keep it; what was learnt longest ago is forgotten first. A full disk costs no more than that."""
        self._lessons.pop(key, None)
        self._lessons[key] = lesson
        for old in list(self._lessons)[:-_MOST]:
            del self._lessons[old]
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps({key: asdict(it) for key, it in self._lessons.items()}, indent=1))
            os.replace(new, self._path)
        except OSError:
            pass


def key_of(name: str, source: str, arguments: Sequence[str]) -> str:
    """The name under which a model, loaded from `source` with these arguments, is remembered."""
    digest = hashlib.sha256("\0".join([source, *arguments]).encode()).hexdigest()[:16]
    return f"{name} {digest}"
