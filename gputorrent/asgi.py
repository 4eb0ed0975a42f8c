"""The ASGI application: what a web process serves, and what it starts and stops.

lifespan   the gateway (dispatcher, watch, keys)
http       completions by the lean door, most of them past ASGI (`gputorrent.connection`); everything else by
           Django; static files in front
websocket  `/ws/jobs/{id}` by its own door; everything else by Channels, for sessions of this site
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()  # before anything that imports models

from channels.routing import URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from channels.sessions import SessionMiddlewareStack  # noqa: E402
from django.urls import re_path  # noqa: E402

from api import gateway, job_socket, lean, staff  # noqa: E402
from dashboard import hub  # noqa: E402
from gputorrent import connection, structs  # noqa: E402
from gputorrent.access import Traced, TracedSocket  # noqa: E402
from gputorrent.body_limit import BodyLimit  # noqa: E402
from gputorrent.urls import websocket_urlpatterns  # noqa: E402
from jobs import dispatch  # noqa: E402
from worker_agent import heap  # noqa: E402

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]

_SWITCH_SECONDS = 0.0005
"""How long the loop waits for a thread that computes: drawing the dashboard, writing the ledger. The
interpreter's own 5 ms come again at each of the loop's turns, and a request takes several."""
sys.setswitchinterval(_SWITCH_SECONDS)
heap.keep()
_YOUNG_OBJECTS = 10_000
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def _refused(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1000})  # before it is accepted: an HTTP 403


_elsewhere = re_path("", _refused)  # type: ignore[arg-type]
_channels = AllowedHostsOriginValidator(
    SessionMiddlewareStack(URLRouter([*websocket_urlpatterns, _elsewhere]))
)


async def _websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Channels would raise at an Origin that is no address: a traceback in the log for any stranger."""
    for name, value in scope["headers"]:
        if name == b"origin" and not staff.is_address(value.decode("latin-1")):
            await _refused(scope, receive, send)
            return
    await _channels(scope, receive, send)


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    if lean.takes(scope):
        await lean.serve(scope, receive, send)
    elif not await lean.turned_away(scope, send):
        await django_application(scope, receive, send)  # type: ignore[arg-type]


_traced = Traced(BodyLimit(_http, lean.too_large))
_job_socket = TracedSocket(job_socket.serve)


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    here = gateway.Gateway()
    try:
        await here.start()
    except Exception as e:  # noqa: BLE001 - the server wants a message, not an exception
        log.error("cannot start: %s: %s", type(e).__name__, e)
        await send({"type": "lifespan.startup.failed", "message": f"{type(e).__name__}: {e}"})
        return
    scope["state"][gateway.STATE] = here
    scope["state"][dispatch.STATE] = here.dispatcher
    door: connection.Door = lean.Door(here)
    scope["state"][connection.DOOR] = door
    dashboard = scope["state"][hub.STATE] = hub.Hub(here.dispatcher)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await dashboard.stop()
    await here.stop()
    await send({"type": "lifespan.shutdown.complete"})


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    match scope["type"]:
        case "http":
            await _traced(scope, receive, send)
        case "websocket" if job_socket.takes(scope):  # clients with a key, of whatever origin
            await _job_socket(scope, receive, send)
        case "websocket":
            await _websocket(scope, receive, send)
        case "lifespan":
            await _lifespan(scope, receive, send)


def _spare_the_collector() -> None:
    """What is loaded by now stays: the cyclic collector need not look at it again and again. And almost
    nothing here is freed by it (requests leave no cycles), so it may look less often than after every 700
    objects: both were 14 % of the processor time of a busy process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


structs.describe_all()
_spare_the_collector()
