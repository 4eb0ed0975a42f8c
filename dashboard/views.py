"""Pages: the dashboard itself, and its curves."""

from __future__ import annotations

import time
from typing import Any

import redis
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache

from dashboard import collecting, history, hub, rows
from dashboard.collecting import Wire
from dashboard.recent import Recent
from dashboard.rendering import Renderer
from dashboard.selecting import view_of
from dashboard.state import State
from gputorrent.redis import piped
from nodes.view import Snapshot

_FRESH_SECONDS = 2.0


@never_cache
def index(request: HttpRequest) -> HttpResponse:
    """The admin's front page: the state of the cluster as it is, and what keeps it moving."""
    view = view_of(request.META.get("QUERY_STRING", ""))
    rendered = Renderer().render(_state(request), {view})[view]
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": admin.site.index_title,
        "parts": {name: mark_safe(html) for name, html in rendered.parts.items()},  # noqa: S308 - templates' own
        "cards": [(i, mark_safe(rendered.cards[i])) for i in rendered.order],  # noqa: S308
        "view": view,
        "at": rendered.at,
        "ranges": history.RANGES,
    }
    return TemplateResponse(request, "dashboard/index.html", context)


@never_cache
def curves(request: HttpRequest) -> HttpResponse:
    """``GET /admin/history?range=5m``: see `history.read`."""
    name = request.GET.get("range", "1h")
    if name not in history.RANGES:
        return JsonResponse({"error": f"range is one of {', '.join(history.RANGES)}"}, status=400)
    return JsonResponse(history.read(name))


def _state(request: HttpRequest) -> State:
    """The state that is shown to others anyway, or one made for this page."""
    here: hub.Hub | None = getattr(request, "scope", {}).get("state", {}).get(hub.STATE)
    if here and here.state and time.time() - here.state.at < _FRESH_SECONDS:
        return here.state
    state, _ = collecting.build(async_to_sync(_wire)(), rows.read)
    return state


async def _wire() -> Wire:
    async with piped() as pipe:
        snapshot = Snapshot()
        try:
            await snapshot.refresh(pipe)
        except redis.RedisError:
            return Wire(time.time())
        return await collecting.ask(pipe, snapshot, Recent())
