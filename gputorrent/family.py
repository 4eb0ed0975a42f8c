"""The launcher's children: started one after another, watched, stopped in the opposite order."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType

from gputorrent.children import Child
from gputorrent.progress import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_LINES = 15
_AGAIN_SECONDS = 2.0


class Interrupted(BaseException):
    """Somebody wants us to stop. Not an Exception: nothing on the way may swallow it."""


class Failure(Exception):
    """It cannot go on. The message is for people; `details` is what a program said last."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Interrupts:
    """The signals that end us: the first raises `Interrupted`, any later one means "hurry"."""

    def __init__(self) -> None:
        self._stopping = False
        self._hurry = False

    def install(self) -> None:
        """From the main thread."""
        for number in _SIGNALS:
            # A shell starts its background jobs with SIGINT ignored; we still want to be told. Not so after
            # nohup, which means what it says.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            self._hurry = True
        else:
            self._stopping = True
            raise Interrupted(signal.Signals(number).name)

    def stopping(self) -> None:
        """From here on a signal interrupts nothing, it only makes the stop faster."""
        self._stopping = True

    def hurry(self) -> bool:
        return self._hurry


class Family:
    """Owns its children's lives from `add` until `stop`."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._members: list[tuple[Child, Callable[[], object]]] = []
        self._started: dict[str, float] = {}  # those that are started again, and when they last were

    def start(self, child: Child, *, again: bool = False) -> None:
        """Start it. It is stopped after those that are started later. With `again` it is started anew when it
        ends, for one that nothing depends on meanwhile."""
        self.add(child, lambda: child.stop(self._interrupts.hurry))
        if again:
            self._started[child.name] = time.monotonic()
        child.start()

    def add(self, child: Child, stop: Callable[[], object]) -> None:
        """Take over one that is (or is being) started and knows itself how to stop."""
        self._members.append((child, stop))

    def check(self) -> None:
        """Raises `Failure` with the last words of the first child that is gone and is not started again."""
        for child, _ in self._members:
            if child.exit_status is not None and child.name in self._started:
                self._start_again(child)
            elif child.exit_status is not None:
                last = child.output().strip().splitlines()[-_LAST_LINES:]
                where = f" (all of it is in {child.log})" if child.log else ""
                raise Failure(f"{child.name} {child.ending()}{where}", "\n".join(last))

    def _start_again(self, child: Child) -> None:
        now = time.monotonic()
        if now - self._started[child.name] < _AGAIN_SECONDS:
            return  # not as fast as it can fail
        say(f"{child.name} {child.ending()}: starting it again")
        child.stop()  # what it left in its group
        self._started[child.name] = now
        child.start()

    def wait(self, done: Callable[[], bool], seconds: float, what: str, every: float = 0.1) -> None:
        """Look until `done`. Raises `Failure` when a child goes, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            if done():
                return
            if time.monotonic() >= deadline:
                raise Failure(f"{what} took more than {seconds:.0f} s")
            time.sleep(every)

    def stop(self) -> None:
        """Stop everyone, the youngest first, whether or not some are gone already."""
        self._interrupts.stopping()
        while self._members:
            child, stop = self._members.pop()
            if child.alive:
                with contextlib.suppress(OSError):  # whoever read our output may have left
                    say(f"stopping {child.name} ...")
            stop()
