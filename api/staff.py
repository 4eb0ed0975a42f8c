"""Staff users, known by their sessions in the admin, and the pages from which such a session counts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest
from django.http.request import split_domain_port, validate_host


def of_request(request: HttpRequest) -> str | None:
    """The name of the active staff user whose session a request has; None if it is nobody's. Blocks."""
    user = get_user(request)
    good = isinstance(user, AbstractUser) and user.is_active and user.is_staff
    return user.get_username() if good else None


def of_session(key: str | None) -> str | None:
    """The same by the session's key: None as well once it has ended, expired, or its user's password is
    another. Blocks."""
    if not key:
        return None
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return of_request(request)


def is_this_site(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the page that asks is one of ours, as Django's check of forms: of the same host, or of
    `CSRF_TRUSTED_ORIGINS`. Another site's page would bring the visitor's cookie along. The names of `headers`
    are in lower case."""
    origin, host = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    netloc = urlsplit(origin).netloc if is_address(origin) else ""
    domain, _ = split_domain_port(host)
    return bool(netloc) and netloc == host and validate_host(domain, settings.ALLOWED_HOSTS)


def is_address(origin: str) -> bool:
    """Whether an `Origin` can be read at all."""
    try:
        urlsplit(origin)
    except ValueError:
        return False
    return True
