"""What the agent owes the wire: replies by web process, and entries to delete. No I/O here.

Replies that gather while one write is under way go out in the next, one list for each web process: the load
sets the size of the batches, no timer does. A list whose write failed is written again as it was, before
anything newer for the same web process; one that found no reader waits aside and holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from worker_agent.contract import Chunk, Done, Reply, encode

_OVERHEAD = 120  # bytes that a reply costs beside its body, about
ENTRY_BYTES = 512 * 1024
"""A list of replies is cut at about this size."""
RETRY_SECONDS = 0.1
"""A web process that starts anew makes its stream within moments."""
DELETE_SECONDS = 0.25
"""A deletion waits so long for a reply to go out with: nothing depends on it, and a trip of its own would be
one more for each request, with the reply waiting behind it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One trip: an encoded list of replies for each web process, and entries to delete by stream."""

    writes: list[tuple[str, bytes]]
    deletes: dict[str, list[bytes]]


@dataclass(slots=True)
class _Owed:
    """To one web process. `sent` is the list under way, or the one to write again. Sizes in bytes, about."""

    replies: list[Reply] = field(default_factory=list)
    size: int = 0
    sent: bytes = b""
    sent_size: int = 0
    missing_since: float | None = None
    not_before: float = 0.0


def _size(reply: Reply) -> int:
    if isinstance(reply, Chunk):
        return len(reply.data) + _OVERHEAD
    return (len(reply.body) if isinstance(reply, Done) else 0) + _OVERHEAD


class Outbox:
    """Bounded in bytes; `put` never waits. Times are the event loop's."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._owed: dict[str, _Owed] = {}
        self._deletes: dict[str, dict[bytes, None]] = {}
        self._due: asyncio.TimerHandle | None = None  # when deletions go out by themselves
        self._overdue = False
        self._size = 0
        self._listener: Callable[[], None] | None = None
        self._again: asyncio.TimerHandle | None = None  # when those that wait aside have their turn
        self._emptied: asyncio.Future[None] | None = None

    def put(self, web: str, reply: Reply, *, must: bool) -> bool:
        """Owe `reply` to `web`; False (and nothing owed) beyond the bound, unless it `must`."""
        size = _size(reply)
        if self._size + size > self._bound and not must:
            return False
        self._size += size
        owed = self._owed.get(web)
        if owed is None:
            owed = self._owed[web] = _Owed()
        owed.replies.append(reply)
        owed.size += size
        self._wake()
        return True

    def delete(self, stream: str, entry: bytes) -> None:
        """Owe the deletion of an entry that was read."""
        self._deletes.setdefault(stream, {})[entry] = None
        self._arm()

    def is_deleting(self, stream: str, entry: bytes) -> bool:
        """Whether an entry was read already and only its deletion is owed."""
        return entry in self._deletes.get(stream, ())

    async def empty(self) -> None:
        """Wait until nothing is owed."""
        while self._owed or self._deletes:
            if self._emptied is None or self._emptied.done():
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Whom to call when there may be something to write: at once, and again for whatever comes."""
        self._listener = listener
        if listener is not None:
            listener()

    def batch(self, now: float) -> Batch | None:
        """What to write now, if anything. `done` says it was; without that, the next batch holds it again."""
        if not self._owed and not self._overdue:
            return None
        batch = self._gather(now)
        if batch.writes or (batch.deletes and self._overdue):
            return batch
        if self._owed and self._again is None:
            aside = min(it.not_before for it in self._owed.values())
            self._again = asyncio.get_running_loop().call_at(aside, self._have_another_try)
        return None

    def done(self, batch: Batch, nobody: set[str], now: float, patience: float) -> list[str]:
        """The batch was written, but nobody reads the streams of `nobody`: theirs is kept for another try.

        Returns those that have been missing for longer than `patience` seconds; what was owed to them is
        forgotten.
        """
        for stream, entries in batch.deletes.items():
            for entry in entries:
                self._deletes[stream].pop(entry, None)
            if not self._deletes[stream]:
                del self._deletes[stream]
        self._overdue = False
        if self._deletes:
            self._arm()
        gone = []
        for web, _ in batch.writes:
            owed = self._owed[web]
            if web in nobody:
                owed.not_before = now + RETRY_SECONDS
                if owed.missing_since is None:
                    owed.missing_since = now
                if now - owed.missing_since > patience:
                    gone.append(web)
                    self._size -= owed.sent_size + owed.size
                    del self._owed[web]
                continue
            self._size -= owed.sent_size
            owed.sent, owed.sent_size, owed.missing_since, owed.not_before = b"", 0, None, 0.0
            if not owed.replies:
                del self._owed[web]
        emptied = self._emptied
        if emptied is not None and not (self._owed or self._deletes or emptied.done()):
            emptied.set_result(None)
        return gone

    def _gather(self, now: float) -> Batch:
        writes = []
        for web, owed in self._owed.items():
            if owed.not_before > now:
                continue
            if not owed.sent:
                part, rest = owed.replies, list[Reply]()
                owed.sent_size = owed.size
                if owed.size > ENTRY_BYTES:
                    part, rest, owed.sent_size = _split(part)
                owed.sent = encode(part)
                owed.replies, owed.size = rest, owed.size - owed.sent_size
            writes.append((web, owed.sent))
        deletes = self._deletes
        return Batch(writes, {key: list(entries) for key, entries in deletes.items()} if deletes else {})

    def _arm(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(DELETE_SECONDS, self._delete_now)

    def _delete_now(self) -> None:
        self._due = None
        if self._deletes:
            self._overdue = True
            self._wake()

    def _have_another_try(self) -> None:
        self._again = None
        self._wake()

    def _wake(self) -> None:
        if self._listener is not None:
            self._listener()


def _split(replies: list[Reply]) -> tuple[list[Reply], list[Reply], int]:
    """As many of the first as make one entry of bounded size, at least one; the rest; the first's size."""
    size = 0
    for count, reply in enumerate(replies):
        more = size + _size(reply)
        if more > ENTRY_BYTES and count:
            return replies[:count], replies[count:], size
        size = more
    return replies, [], size
