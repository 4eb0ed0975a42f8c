"""Whoever is logged in to the admin, as a caller: each user has a row among the keys which no secret opens.

So what is asked for in the admin has rights, limits, a turn in the queue, usage and records as what comes by
any other key has, and whoever revokes that row takes it from that user.
"""

from __future__ import annotations

import asyncio
import time

from django.contrib.auth import get_user
from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest

from api import authentication
from api.authentication import Caller
from api.errors import ApiError, ledger_unavailable, unauthorized
from api.gateway import Gateway
from api.models import ApiKey
from gputorrent import ledger, tracing

PERMISSION = "jobs.add_job"
"""What a staff user needs to ask models for something."""

_KNOWN_SECONDS = 5.0
_LOOK_SECONDS = 0.02


async def caller_of(gateway: Gateway, request: HttpRequest) -> Caller:
    """Who a session belongs to, as the keys of this process have it. Raises `ApiError` 401 without a staff
    user's session or with a row that was revoked, 403 without the permission; `DatabaseError`."""
    entry = await ledger.ask(_entry, request)
    until = time.monotonic() + _KNOWN_SECONDS
    while (caller := gateway.keys.entry(entry)) is None:  # a row that is new here comes with the next look
        if time.monotonic() > until:
            raise ledger_unavailable()
        await asyncio.sleep(_LOOK_SECONDS)
    tracing.current().key = caller.name
    return caller


def _entry(request: HttpRequest) -> str:
    """Where the user stands in the key ring; the row is made with the first request."""
    user = get_user(request)
    if not (isinstance(user, AbstractUser) and user.is_active and user.is_staff):
        raise unauthorized("This needs a staff user's session in the admin: log in again.")
    if not user.has_perm(PERMISSION):
        message = f"Your account may look, but not ask models for anything: that needs '{PERMISSION}'."
        raise ApiError("insufficient_permissions", message)
    key, new = ApiKey.objects.get_or_create(
        key_hash=f"{authentication.NOT_A_HASH}{user.pk}",
        defaults={
            "name": f"playground: {user.get_username()}"[:100],
            "prefix": "playground",
            "owner": user,
        },
    )
    if key.state != "valid":
        raise unauthorized(f"The key '{key.name}', which stands for you here, is {key.state}.")
    if new:
        authentication.announce()
    return key.key_hash
