"""Settings that start fine and break later, said by `manage.py check` and before the server starts."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register


@register(Tags.compatibility)
def times_fit_together(**kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.HEARTBEAT_SECONDS > 30:
        found.append(
            Error(
                "GPUTORRENT_HEARTBEAT_SECONDS is above 30.",
                hint="Agents must beat at least every 30 s; 10 is the default.",
                id="nodes.E001",
            )
        )
    if settings.UNHEALTHY_AFTER_SECONDS < 2 * settings.HEARTBEAT_SECONDS:
        found.append(
            Error(
                "GPUTORRENT_UNHEALTHY_AFTER_SECONDS is less than two heartbeats.",
                hint="One late beat would take a healthy node out of service.",
                id="nodes.E002",
            )
        )
    if settings.LEASE_SECONDS < 2 * settings.LEASE_REFRESH_SECONDS:
        found.append(
            Error(
                "GPUTORRENT_LEASE_SECONDS is less than two refreshes of the lease.",
                hint="Raise it, or lower GPUTORRENT_LEASE_REFRESH_SECONDS.",
                id="nodes.E003",
            )
        )
    return found


@register(Tags.security)
def redis_url_is_sane(**kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for name, url in (
        ("REDIS_URL", settings.REDIS_URL),
        ("GPUTORRENT_REDIS_PUBLIC_URL", settings.REDIS_PUBLIC_URL),
    ):
        if url and urlsplit(url).scheme not in {"redis", "rediss"}:
            found.append(
                Error(f"{name} must start with redis:// or rediss://.", hint=f"{name}=...", id="nodes.E004")
            )
    public = urlsplit(settings.REDIS_PUBLIC_URL)
    if settings.PRODUCTION and public.scheme == "redis" and public.hostname not in {"127.0.0.1", "localhost"}:
        found.append(
            Warning(
                "Agents will reach Redis without TLS.",
                hint="Prompts travel in clear: use rediss://, or a private network such as WireGuard.",
                id="nodes.W001",
            )
        )
    return found
