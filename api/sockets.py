"""The WebSockets that a web process has open: bounded, and cut when their key is revoked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from django.conf import settings

from api.authentication import KeyRing
from api.socket_callers import SocketCaller


class Close(NamedTuple):
    """Why a socket ends: its close code, and a word that programs may rely on."""

    code: int
    reason: str


ENDED: Final = Close(1000, "")
MISTAKE: Final = Close(1011, "internal_error")
AWAY: Final = Close(1013, "ledger_unavailable")
BAD_REQUEST: Final = Close(4400, "invalid_value")
NO_KEY: Final = Close(4401, "invalid_api_key")
NO_SUCH_JOB: Final = Close(4404, "job_not_found")
TOO_SLOW: Final = Close(4408, "too_slow")
TOO_MANY: Final = Close(4429, "too_many_sockets")


class Closed(Exception):
    """The socket is to be closed."""

    def __init__(self, close: Close) -> None:
        super().__init__(close.reason)
        self.close = close


class Socket:
    """One that is open; `cut` is done when it has to end early."""

    def __init__(self, caller: SocketCaller) -> None:
        self.caller = caller
        self.cut: asyncio.Future[Close] = asyncio.get_running_loop().create_future()

    def end(self, close: Close) -> None:
        if not self.cut.done():
            self.cut.set_result(close)


class Sockets:
    def __init__(self) -> None:
        self._open: set[Socket] = set()
        self._by_caller: Counter[int | str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(self, caller: SocketCaller) -> Iterator[Socket]:
        """Raises `Closed` when there are too many, of all callers or of this one."""
        who = caller.key or caller.name
        if len(self._open) >= settings.SOCKETS or self._by_caller[who] >= settings.SOCKETS_PER_KEY:
            raise Closed(TOO_MANY)
        socket = Socket(caller)
        self._open.add(socket)
        self._by_caller[who] += 1
        try:
            yield socket
        finally:
            self._open.discard(socket)
            self._by_caller[who] -= 1
            if not self._by_caller[who]:
                del self._by_caller[who]

    def end_those_of_dead_keys(self, keys: KeyRing) -> None:
        """Asked several times a second."""
        if not self._open:
            return
        dead = keys.dead({s.caller.key for s in self._open if s.caller.key is not None})
        for socket in [s for s in self._open if s.caller.key in dead]:
            socket.end(NO_KEY)
