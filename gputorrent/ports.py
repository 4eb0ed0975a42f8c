"""Which port to listen on."""

from __future__ import annotations

import os
import random
import socket


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now. Somebody else may still take it the next moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        # As servers do: a port that only has connections in TIME_WAIT counts as free.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


_FIRST, _LAST = 20_000, 32_000


def span() -> tuple[int, int]:
    """The first and the last port to choose from: GPUTORRENT_PORTS (such as ``20000-25999``), so that what is
    started side by side does not choose the same in the moment before it listens. Raises ValueError."""
    first, _, last = os.environ.get("GPUTORRENT_PORTS", f"{_FIRST}-{_LAST}").partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) < 65536):
        raise ValueError("GPUTORRENT_PORTS must be two ports, such as 20000-25999")
    return int(first), int(last)


def any_free(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago.

    One of `span`, which by default is below those that systems give to outgoing connections (32768 and up on
    Linux, 49152 elsewhere): one of those may be taken by any program's next connection before a server gets
    to listen there. Raises ValueError as that does.
    """
    for _ in range(20):
        port = random.randint(*span())  # noqa: S311 - no secret
        if is_free(port, host):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind((host, 0))
        chosen: int = s.getsockname()[1]
        return chosen


def next_free(first: int, host: str = "127.0.0.1", tries: int = 100) -> int:
    """`first`, or the next port above it on which nothing listens. Raises OSError when there is none."""
    for port in range(first, min(first + tries, 65536)):
        if is_free(port, host):
            return port
    raise OSError(f"no free port between {first} and {first + tries - 1} on {host}")
