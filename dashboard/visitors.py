"""Who may watch: a staff user with a session in the admin, for as long as both last."""

from __future__ import annotations

from collections.abc import Iterable

from api import socket_callers


def may_watch(session_key: str | None) -> bool:
    """Whether the session is there, has not expired, and belongs to an active staff user whose password is
    the one it was begun with. Asks the ledger: blocks."""
    return session_key is not None and socket_callers.staff_user(session_key) is not None


def from_our_pages(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the page that asks is one of ours (or of `CSRF_TRUSTED_ORIGINS`), by what its browser says:
    another site's page would bring the visitor's cookie along. What says nothing is no browser."""
    told = {name: value.decode("latin-1") for name, value in headers if name in {b"origin", b"host"}}
    origin = told.get(b"origin")
    return origin is None or socket_callers.of_this_site(origin, told.get(b"host", ""))
