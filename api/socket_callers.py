"""Who opens a WebSocket: an API key, or a staff user's session in the admin.

Programs send the key as ever, ``Authorization: Bearer KEY``. Browsers cannot set that header, so the key may
also be offered as a subprotocol, beside ``gputorrent`` which is the one that is accepted; never in the query
string, which ends up in logs. A key is good from every origin, since no browser sends it by itself. A cookie
it does send by itself, so that of a session counts only on pages of this very site.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from django.conf import settings
from msgspec import Struct

from api import staff
from api.authentication import KeyRing
from api.errors import unauthorized
from api.records import Reader
from gputorrent import ledger

SUBPROTOCOL: Final = "gputorrent"
_KEY_PREFIXES: Final = ("gputorrent-api-key.", "openai-insecure-api-key.")


class SocketCaller(Struct, frozen=True):
    """`key` is the primary key of an `ApiKey`, or None for a session, whose cookie's value is `session`."""

    name: str
    key: int | None
    staff: bool
    session: str = ""

    @property
    def reader(self) -> Reader:
        return Reader(self.key or 0, self.staff)


async def identify(keys: KeyRing, scope: Mapping[str, Any]) -> SocketCaller:
    """Raises `ApiError` 401; `DatabaseError` where a session is to be looked up and the ledger is away."""
    headers = dict(scope["headers"])
    given = headers.get(b"authorization", b"").decode("latin-1") or _offered(scope.get("subprotocols", ()))
    session = "" if given else _session_of(headers)
    if not session:
        caller = keys.caller(given)
        return SocketCaller(caller.name, caller.key, caller.staff)
    name = await ledger.ask(staff.of_session, session)
    if name is None:
        raise unauthorized("This needs an API key, or a staff user's session in the admin.")
    return SocketCaller(f"user {name}", None, True, session)


def subprotocol(offered: list[str]) -> str | None:
    """What to accept of what a client offers; never what carries its key."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _offered(subprotocols: list[str]) -> str:
    for offer in subprotocols:
        for prefix in _KEY_PREFIXES:
            if offer.startswith(prefix):
                return f"Bearer {offer.removeprefix(prefix)}"
    return ""


def _session_of(headers: Mapping[bytes, bytes]) -> str:
    """The session's key, if the page that sends it is of this site."""
    if not staff.is_this_site(headers):
        return ""
    try:
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return ""
    found = cookies.get(settings.SESSION_COOKIE_NAME)
    return found.value if found else ""
