"""How an HTTP/1.1 answer begins: its status line and its headers, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Headers = Sequence[tuple[bytes, bytes]]

CLOSE: Final = b"connection: close\r\n"
_CONTROL: Final = bytes([*range(9), *range(10, 32), 127])


def lines(headers: Headers) -> bytes:
    """Headers as they are sent. Their names are ours; a value may be somebody else's, and one with a control
    character could end its line and begin another: ValueError."""
    made = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    if len(made.translate(None, _CONTROL)) != len(made) - 2 * len(headers):
        raise ValueError("a header has control characters")
    return made


class Heads:
    """Makes heads. What the server adds to every answer (the date) is put into bytes once for each list of
    it: the server makes a new one each second."""

    def __init__(self) -> None:
        self._added: Headers = ()
        self._added_lines = b""

    def make(self, status: int, added: Headers, headers: Headers, *, stays: bool) -> tuple[bytes, bool]:
        """A head, and whether the connection stays open behind the answer: not if one of the headers says
        that it closes. Raises ValueError (see `lines`), KeyError for a status that is none."""
        if added is not self._added:
            self._added_lines, self._added = lines(added), added
        own = lines(headers)
        if CLOSE in own:
            stays = False
        elif not stays:
            own += CLOSE
        return b"%b%b%b\r\n" % (STATUS_LINE[status], self._added_lines, own), stays
