"""What has come of an answer, on its way to the caller: at once by a sink, or gathered until he reads on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct, field

from jobs.errors import JobError
from worker_agent.contract import Chunk, Done, Failed


@dataclass(frozen=True, slots=True)
class Lost:
    """The coordinator's own finding that an attempt, or the wait for one, is over."""

    outcome: str
    message: str
    error: Exception | None = None  # what the caller is to be told, where that is already known


Event = Chunk | Done | Failed | Lost

Sink = Callable[[bytes], bool]
"""Writes a part of the answer to its caller. False: not now, he reads too slowly; nothing was written."""


class Outflow(Struct, eq=False, kw_only=True):
    """Events come in by `_put`, and out by `next`. A chunk need not become one: while somebody waits in
    `next` for the answer to flow, all before it has gone out, and it may go straight to the sink. So a token
    costs no future and wakes no task, and what ends the answer still comes by `next`, behind everything else.
    """

    sink: Sink | None = None
    """Of the door that answers, once its answer has begun."""
    passed: int = 0
    """Server-sent events that went to the sink."""
    stopped: JobError | None = None  # what a caller who was sent away is told
    _events: deque[Event] = field(default_factory=deque)
    _buffered: int = 0  # bytes of the chunks among them
    _waiter: asyncio.Future[None] | None = None
    _open: Sink | None = None  # the sink, while somebody waits for the answer to flow

    def _goes_at_once(self, data: bytes, events: int) -> bool:
        """Give a chunk of so many events to the sink, if it is its turn and the sink takes it."""
        if self._open is None or self._events:
            return False
        try:
            if not self._open(data):
                return False
        except Exception:  # noqa: BLE001 - it becomes an event, and fails where the answer is followed
            return False
        self.passed += events
        return True

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self, error: JobError) -> None:
        """Send the caller away: after the chunks that have gathered, `next` raises `error`."""
        self.stopped = error
        self._wake()

    async def next(self, *, flowing: bool = False) -> Event:
        """The next event of the live attempt; chunks that gathered meanwhile come as one. `flowing`: whoever
        asks has given out all before it, and need not see chunks that the sink takes. Raises what the job was
        stopped with."""
        while not self._events:
            if self.stopped:
                raise self.stopped
            self._waiter = asyncio.get_running_loop().create_future()
            if flowing:
                self._open = self.sink
            try:
                await self._waiter
            finally:
                self._waiter = self._open = None
        event = self._events.popleft()
        if not isinstance(event, Chunk):
            if self.stopped:
                raise self.stopped
            return event
        self._buffered -= len(event.data)
        if not self._events or not isinstance(self._events[0], Chunk):
            return event
        parts = [event.data]
        while self._events and isinstance(self._events[0], Chunk):
            more = self._events.popleft()
            assert isinstance(more, Chunk)
            self._buffered -= len(more.data)
            parts.append(more.data)
        return Chunk(event.job, event.attempt, event.lease, event.seq, b"".join(parts))
