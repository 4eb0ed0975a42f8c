"""The viewer's time zone, as his browser tells it (`times.js`): in it he types times, as he reads them."""

from __future__ import annotations

import zoneinfo
from typing import Final

from django.http import HttpRequest

COOKIE: Final = "timezone"


def of(request: HttpRequest) -> zoneinfo.ZoneInfo | None:
    """None: not told, or no zone that is known here."""
    try:
        return zoneinfo.ZoneInfo(request.COOKIES[COOKIE])
    except (KeyError, ValueError, OSError):  # not told or not known; no name at all; a folder's
        return None
