"""What a person sees of a long step: one line that changes on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

LOG_SECONDS = 5.0


class Progress:
    """One long step. `update` as often as you like; `done` or `failed` once."""

    def __init__(self, what: str, out: TextIO | None = None) -> None:
        self.what = what
        self.out = out or sys.stdout
        self.started = time.monotonic()
        self._live = self.out.isatty()
        self._next = 0.0
        self._width = 0
        if not self._live:
            say(f"{what} ...", self.out)
            self._next = self.started + LOG_SECONDS

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def update(self, how_far: str) -> None:
        """Show how far it is. In a log only every few seconds."""
        if self._live:
            self._redraw(f"{self.what}: {how_far}, {self.seconds:.0f} s")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LOG_SECONDS
            say(f"  {self.what}: {how_far}, {self.seconds:.0f} s", self.out)

    def note(self, line: str) -> None:
        """A line of its own, in between. It says enough for a while."""
        self._next = time.monotonic() + 2 * LOG_SECONDS
        if self._live:
            self._redraw("")
        say(line, self.out)

    def done(self, result: str = "done") -> None:
        self._finish(f"{self.what}: {result} ({self.seconds:.0f} s)")

    def failed(self, reason: str = "failed") -> None:
        self._finish(f"{self.what}: {reason} (after {self.seconds:.0f} s)")

    def _finish(self, line: str) -> None:
        if self._live:
            self._redraw("")
        say(line, self.out)

    def _redraw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        self.out.write("\r" + line.ljust(self._width) + ("\r" if not line else ""))
        self.out.flush()
        self._width = len(line)


def say(line: str, out: TextIO | None = None) -> None:
    """One line to the person in front of the screen, at once."""
    out = out or sys.stdout
    out.write(line + "\n")
    out.flush()
