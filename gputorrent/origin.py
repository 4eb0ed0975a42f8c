"""WebSockets are for this site's own pages: a browser tells which page opens one, and no policy of its own
stops a foreign page from doing so with the cookies of whoever looks at it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def may_open(origin: str, host: str) -> bool:
    """Whether a page of `origin` (the header; empty if there was none) may open a socket at `host`.

    Its host and port must be those it asks for, and be ours (`ALLOWED_HOSTS`), or the origin one that forms
    are taken from (`CSRF_TRUSTED_ORIGINS`, behind a proxy that changes the host). The scheme is not compared:
    a proxy that ends TLS hides it.
    """
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    try:
        page = urlsplit(origin)
        asked = split_domain_port(host)[0]
    except ValueError:
        return False
    if page.scheme not in {"http", "https"} or page.netloc.lower() != host.lower():
        return False
    return bool(asked) and validate_host(asked, settings.ALLOWED_HOSTS)


class SameOrigin:
    """ASGI middleware for WebSockets: others are refused with 403 before they are open."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if may_open(headers.get(b"origin", ""), headers.get(b"host", "")):
            await self._app(scope, receive, send)
        else:
            await WebsocketDenier()(scope, receive, send)
