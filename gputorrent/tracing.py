"""Which request the code at hand works for: its id, its job, whose key. One for each HTTP request, found
through a context variable by whatever logs or answers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from uuid import uuid4

A = TypeVar("A")
T = TypeVar("T")

HEADER: Final = b"x-request-id"
JOB_HEADER: Final = b"x-job-id"
_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Trace:
    """One request. Its id is the caller's, if that sent a good one; else the job's; else a new one, made when
    something first needs it."""

    __slots__ = ("_id", "begun", "job", "key", "status")

    def __init__(self, given: str = "") -> None:
        self._id = given
        self.begun = time.perf_counter()
        self.job = ""
        self.key = ""  # the name of the caller's key
        self.status = 0

    @property
    def id(self) -> str:
        """The request's id: it does not change once it was read."""
        if not self._id:
            self._id = self.job or uuid4().hex
        return self._id

    def stamp(self, message: MutableMapping[str, Any]) -> None:
        """Put the ids among the headers of a response that begins."""
        message["headers"] = [*message.get("headers", ()), *self.began(message["status"])]

    def began(self, status: int) -> list[tuple[bytes, bytes]]:
        """A response begins with this status: the headers with the ids that belong to it."""
        self.status = status
        ids = [(HEADER, self.id.encode())]
        if self.job:
            ids.append((JOB_HEADER, self.job.encode()))
        return ids


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(headers: Iterable[tuple[bytes, bytes]]) -> Trace:
    """The trace of a request that has just come, from now on found by `current`."""
    trace = of(headers)
    enter(trace)
    return trace


def of(headers: Iterable[tuple[bytes, bytes]]) -> Trace:
    """The trace of a request that has just come."""
    for name, value in headers:
        if name == HEADER:
            return Trace(value.decode("ascii") if _WELL_FORMED.fullmatch(value) else "")
    return Trace()


def enter(trace: Trace) -> None:
    """From now on this task works for that request."""
    _current.set(trace)


def within(trace: Trace, do: Callable[[A], T], what: A) -> T:
    """What `do` does with `what` is for that request: for callbacks of a server, which are in no task."""
    before = _current.set(trace)
    try:
        return do(what)
    finally:
        _current.reset(before)


def current() -> Trace:
    """The trace of the request this code works for; outside of one, a new one that nobody will see."""
    return _current.get() or Trace()


def request_id() -> str:
    """The id of the request this code works for; empty outside of one."""
    trace = _current.get()
    return trace.id if trace is not None else ""
