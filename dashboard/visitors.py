"""Who may watch: a staff user with a session in the admin, for as long as both last."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest


def may_watch(session_key: str | None) -> bool:
    """Whether the session is there, has not expired, and belongs to an active staff user whose password is
    the one it was begun with. Asks the ledger: blocks."""
    if not session_key:
        return False
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user = get_user(request)
    return isinstance(user, AbstractUser) and user.is_active and user.is_staff


def from_our_pages(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the page that asks is one of ours (or of `CSRF_TRUSTED_ORIGINS`), by what its browser says:
    another site's page would bring the visitor's cookie along. What says nothing is no browser."""
    told = {name: value.decode("latin-1") for name, value in headers if name in {b"origin", b"host"}}
    origin = told.get(b"origin")
    if origin is None:
        return True
    return origin in settings.CSRF_TRUSTED_ORIGINS or urlsplit(origin).netloc == told.get(b"host")
