"""API keys: made here, checked from memory.

Each web process holds all valid keys as a map from hash to `Caller`, read again when the counter in Redis
says that a key changed, and every few seconds in any case. So a request costs one HMAC and no query, and a
wrong key costs no more than a right one.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable

import redis
from django.db import DatabaseError, InterfaceError
from django.db.models import Q
from django.utils import timezone
from msgspec import Struct

from api.errors import ApiError, unauthorized
from api.models import ApiKey
from gputorrent import credentials, ledger
from gputorrent.redis import Pipe, blocking

log = logging.getLogger(__name__)

VERSION = "gt:keys:version"
_RELOAD_SECONDS = 5.0


class Caller(Struct, frozen=True):
    """Who a key belongs to, and what it may do."""

    key: int
    name: str
    staff: bool
    expires_at: float  # seconds since the epoch; 0: never
    priority: int = 0  # the most its requests may have


def new_key(name: str, *, staff: bool = False, expires_in_seconds: float | None = None) -> tuple[ApiKey, str]:
    """Make a key. The second value is the key itself, which is not stored."""
    secret = credentials.new("sk-gt")
    expires = timezone.now() + datetime.timedelta(seconds=expires_in_seconds) if expires_in_seconds else None
    row = ApiKey.objects.create(
        name=name, prefix=secret[:12], key_hash=credentials.digest(secret), staff=staff, expires_at=expires
    )
    announce()
    return row, secret


def revoke(key: ApiKey) -> None:
    """Refuse the key from now on (every process hears of it within a second)."""
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
    announce()


def announce() -> None:
    """Tell all processes that keys changed. They find out by themselves when Redis is away."""
    try:
        blocking().incr(VERSION)
    except redis.RedisError as e:
        log.warning(
            "redis unavailable error=%s: key change seen within %g s", type(e).__name__, _RELOAD_SECONDS
        )


class KeyRing:
    """All valid keys, in the memory of one process."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}
        self._version: bytes | None = b"-"
        self._loaded_at = 0.0

    def caller(self, authorization: str) -> Caller:
        """Who sends this `Authorization` header. Raises `ApiError` 401."""
        scheme, _, secret = authorization.partition(" ")
        if not authorization:
            raise unauthorized("You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")
        if scheme.lower() != "bearer" or not secret:
            raise unauthorized("The Authorization header must have the form 'Bearer KEY'.")
        # The map is looked up by a keyed hash of 256 random bits, so timing tells nothing about other keys.
        caller = self._callers.get(credentials.digest(secret.strip()))
        if caller is None or (caller.expires_at and caller.expires_at <= time.time()):
            raise unauthorized("Incorrect API key provided.")
        return caller

    async def refresh(self, pipe: Pipe) -> bool:
        """Read the keys again if any changed. Returns whether one is gone that was there before."""
        try:
            version = await pipe.send("GET", VERSION)
        except redis.RedisError:
            version = self._version
        now = time.monotonic()
        if version == self._version and now - self._loaded_at < _RELOAD_SECONDS:
            return False
        try:
            callers = await ledger.ask(_load)
        except (DatabaseError, InterfaceError) as e:
            log.warning("ledger unavailable error=%s: keeping the keys in memory", type(e).__name__)
            return False
        before, self._callers = self._callers, callers
        self._version, self._loaded_at = version, now
        return not _keys(before) <= _keys(callers)

    def dead(self, keys: Iterable[int]) -> set[int]:
        """Those of `keys` that may ask for nothing any more: revoked, expired, or deleted."""
        now = time.time()
        good = {c.key for c in self._callers.values() if not c.expires_at or c.expires_at > now}
        return set(keys) - good


def _keys(callers: dict[str, Caller]) -> set[int]:
    return {caller.key for caller in callers.values()}


def _load() -> dict[str, Caller]:
    valid = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    rows = ApiKey.objects.filter(valid, revoked_at=None)
    return {
        k.key_hash: Caller(k.pk, k.name, k.staff, k.expires_at.timestamp() if k.expires_at else 0.0)
        for k in rows
    }


def require_staff(caller: Caller) -> None:
    """Raises `ApiError` 403 for a key that may only ask for completions."""
    if not caller.staff:
        raise ApiError(
            "insufficient_permissions",
            "This API key may not read the cluster's state: use a staff key, or log in to the admin.",
        )
