"""API keys: made here, checked from memory.

Each web process holds all valid keys as a map from hash to `Caller`, read again when the counter in Redis
says that a key changed, and every few seconds in any case. So a request costs no query, and a wrong key costs
one HMAC. A right one costs that once; until the keys are read again its sender is known by a cheaper hash.

**What timing tells.** Nothing here compares secrets byte by byte. Both maps are looked up by a keyed hash of
what was sent (HMAC-SHA-256 under the pepper; BLAKE2b under a key of this process that nobody is told), and
whoever does not know the key cannot choose how the hash of a guess begins. Who sends a good key may learn
that it was used a moment ago. Only what was found by the HMAC is remembered, as a hash: no secret is kept.
"""

from __future__ import annotations

import datetime
import logging
import secrets
import time
from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

import redis
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DatabaseError, InterfaceError
from django.db.models import Q
from django.utils import timezone
from msgspec import Struct, structs

from api import usage
from api.errors import ApiError, no_such_model, unauthorized
from api.models import ApiKey, among, places
from gputorrent import credentials, ledger
from gputorrent.redis import Pipe, blocking
from jobs.interactive import Request

log = logging.getLogger(__name__)

VERSION = "gt:keys:version"
NOT_A_HASH = "session:"
"""How the `key_hash` of a row begins that stands for a logged-in user: no digest looks like that."""
_RELOAD_SECONDS = 5.0
_MOST_REMEMBERED: Final = 10_000
"""Headers; one key may be sent in several forms (`bearer`, more spaces), so keys alone do not bound them."""


class Limits(Struct, frozen=True):
    """What a key may use; 0: without limit. Days and months are those of UTC."""

    concurrency: int = 0  # requests at once
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    # What the ledger has of the budgets' periods, so that Redis may forget (see `api.limits`).
    spent: usage.Spent = usage.NOTHING_SPENT


class Caller(Struct, frozen=True):
    """Who a key belongs to, and what it may do."""

    key: int
    name: str
    staff: bool
    expires_at: float  # seconds since the epoch; 0: never
    models: tuple[str, ...] = ()  # names, or beginnings with a `*` behind; empty: all
    nodes: frozenset[str] | None = None  # ids of those that may see its prompts; None: all
    priority: int = 0  # the most its requests may have
    limits: Limits | None = None

    def may_use(self, model: str) -> bool:
        """Whether the key is for this model."""
        if not self.models or model in self.models:
            return True
        return any(entry.endswith("*") and model.startswith(entry[:-1]) for entry in self.models)

    def authorise(self, request: Request) -> Request:
        """The request with the key's rights in it. Raises `ApiError` 404 for a model it may not use."""
        if not self.may_use(request.model):
            raise no_such_model(request.model)
        return request if self.nodes is None else structs.replace(request, only=self.nodes)


def new_key(name: str, *, expires_in_seconds: float | None = None, **options: Any) -> tuple[ApiKey, str]:
    """Make a key with these fields of `ApiKey`. The second value is the key itself, which is not stored.

    Raises `ValidationError`.
    """
    if expires_in_seconds:
        options["expires_at"] = timezone.now() + datetime.timedelta(seconds=expires_in_seconds)
    secret = credentials.new("sk-gt")
    row = ApiKey(name=name, prefix=secret[:12], key_hash=credentials.digest(secret), **options)
    row.full_clean()
    row.save()
    announce()
    return row, secret


def edit(key: ApiKey, **changes: Any) -> None:
    """Change fields of a key. Raises `ValidationError`, and then changes nothing."""
    for name, value in changes.items():
        setattr(key, name, value)
    key.full_clean()
    key.save(update_fields=list(changes))
    announce()


def rotate(key: ApiKey, *, grace_seconds: float = 0.0) -> str:
    """Give a key a new secret, which is returned and not stored. The one it had stays valid for the grace;
    one that was still in its own grace ends now. Raises `ValidationError` for a revoked key, and for
    one that has no secret."""
    if key.revoked_at:
        raise ValidationError("A revoked key cannot be rotated: make a new one.")
    if key.key_hash.startswith(NOT_A_HASH):
        raise ValidationError("This row stands for a user of the playground: it has no secret.")
    secret = credentials.new("sk-gt")
    key.previous_hash = key.key_hash if grace_seconds > 0 else ""
    until = timezone.now() + datetime.timedelta(seconds=grace_seconds)
    key.previous_until = until if grace_seconds > 0 else None
    key.prefix, key.key_hash = secret[:12], credentials.digest(secret)
    key.save(update_fields=["previous_hash", "previous_until", "prefix", "key_hash"])
    announce()
    return secret


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


def let_all_look() -> None:
    """Return when every web process knows of the last change, so that a key which is printed then is good.
    They may look half as late again as they mean to."""
    time.sleep(2 * settings.SNAPSHOT_SECONDS)


class Stranger(Enum):
    """Why nobody is known by a header, in the words that its sender is told."""

    NO_KEY = "You didn't provide an API key: send it as 'Authorization: Bearer KEY'."
    NO_BEARER = "The Authorization header must have the form 'Bearer KEY'."
    WRONG_KEY = "Incorrect API key provided."


class KeyRing:
    """All valid keys, in the memory of one process."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}
        self._version: bytes | None = b"-"
        self._loaded_at = 0.0
        self._remembered: dict[bytes, Caller] = {}
        self._secret: Final = secrets.token_bytes(64)

    def caller(self, authorization: str) -> Caller:
        """Who sends this `Authorization` header. Raises `ApiError` 401."""
        found = self.find(authorization)
        if isinstance(found, Stranger):
            raise unauthorized(found.value)
        return found

    def find(self, authorization: str) -> Caller | Stranger:
        """The same, for those who refuse a thousand strangers a second: nothing is raised or put together."""
        if not authorization:
            return Stranger.NO_KEY
        # Held fast: what is found among these keys must not be remembered with those read meanwhile.
        remembered = self._remembered
        sent = blake2b(authorization.encode("utf-8", "surrogateescape"), digest_size=32, key=self._secret)
        name = sent.digest()
        if (caller := remembered.get(name)) is not None:
            return Stranger.WRONG_KEY if 0 < caller.expires_at <= time.time() else caller
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            return Stranger.NO_BEARER
        caller = self.entry(credentials.digest(secret.strip()))
        if caller is None:
            return Stranger.WRONG_KEY
        if len(remembered) >= _MOST_REMEMBERED:
            remembered.clear()
        remembered[name] = caller
        return caller

    def entry(self, key_hash: str) -> Caller | None:
        """Who this row stands for, if it is valid."""
        caller = self._callers.get(key_hash)
        return None if caller is None or 0 < caller.expires_at <= time.time() else caller

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
        before, self._callers, self._remembered = self._callers, callers, {}
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
    keys = list(ApiKey.objects.filter(valid, revoked_at=None))
    nodes = places() if any(k.allowed_nodes for k in keys) else []
    spent = usage.spent([k.pk for k in keys if k.tokens_per_day or k.tokens_per_month])
    found = {}
    for k in keys:
        caller = Caller(
            key=k.pk,
            name=k.name,
            staff=k.staff,
            expires_at=k.expires_at.timestamp() if k.expires_at else 0.0,
            models=tuple(k.allowed_models),
            nodes=among(k.allowed_nodes, nodes) if k.allowed_nodes else None,
            priority=k.priority,
            limits=_limits(k, spent.get(k.pk, usage.NOTHING_SPENT)),
        )
        found[k.key_hash] = caller
        if k.previous_hash and k.previous_until:
            until = k.previous_until.timestamp()
            until = min(until, caller.expires_at) if caller.expires_at else until
            found[k.previous_hash] = structs.replace(caller, expires_at=until)
    return found


def _limits(key: ApiKey, spent: usage.Spent) -> Limits | None:
    limits = Limits(
        key.concurrency,
        key.requests_per_minute,
        key.tokens_per_minute,
        key.tokens_per_day,
        key.tokens_per_month,
    )
    return structs.replace(limits, spent=spent) if limits != Limits() else None


def require_staff(caller: Caller) -> None:
    """Raises `ApiError` 403 for a key that may only ask for completions."""
    if not caller.staff:
        raise ApiError(
            "insufficient_permissions",
            "This API key may not read the cluster's state: use a staff key, or log in to the admin.",
        )
