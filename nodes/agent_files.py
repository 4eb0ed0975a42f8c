"""``GET /agent/...``: the agent for hosts that are to join. Open to everybody, since it holds no secret."""

from __future__ import annotations

from contextlib import suppress

import redis
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from nodes import joining
from nodes.agent_wheel import wheel

JOIN = "join"
"""The parameter that says for which token the wheel is fetched: a hint for whoever waits, no secret."""


@require_safe
def agent_wheel(request: HttpRequest, filename: str) -> HttpResponse:
    """The wheel by its name, which changes with its contents."""
    found = wheel()
    if filename != found.filename:
        raise Http404
    token = request.GET.get(JOIN, "")
    if token.isascii() and token.isdigit() and len(token) < 16:
        with suppress(redis.RedisError):  # it is only shown
            joining.fetched(int(token))
    response = HttpResponse(found.content, content_type="application/zip")
    response["Content-Disposition"] = f'attachment; filename="{found.filename}"'
    return response
