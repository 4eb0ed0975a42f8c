"""Secrets we hand out: made here, stored only as a hash, compared in constant time.

They are 256-bit random, so a plain keyed hash is enough; a password hash would cost 440 ms a request and
protect nothing more. The pepper keeps a leaked database from being checked against guesses at all.
"""

from __future__ import annotations

import hmac
import secrets

from gputorrent.chosen import settings


def new(prefix: str) -> str:
    """A new secret such as ``gtn-…``: 43 URL-safe characters behind the prefix."""
    return f"{prefix}-{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """HMAC-SHA-256 under the server's pepper, in hex (64 characters)."""
    pepper: str = settings.API_KEY_PEPPER
    return hmac.digest(pepper.encode(), secret.encode("utf-8", "surrogateescape"), "sha256").hex()


def matches(secret: str, stored: str) -> bool:
    """Whether `stored` is the digest of `secret`; takes the same time whether or not it is."""
    return hmac.compare_digest(digest(secret), stored)
