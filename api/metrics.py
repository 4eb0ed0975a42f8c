"""``GET /metrics``, and errors of all doors counted by their code."""

from __future__ import annotations

import hmac
from typing import Any

from adrf.views import APIView
from django.conf import settings
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from api import errors, exposition, gateway, views
from jobs import metrics


class MetricsView(APIView):
    """``GET /metrics``: Prometheus' text format 0.0.4, for all web processes together.

    For staff (key or session), and for whoever sends ``GPUTORRENT_METRICS_TOKEN`` as a bearer token. Never
    open to the loopback address: behind a proxy on the same host that is everybody's.
    """

    async def get(self, request: Request) -> HttpResponse:
        if not _has_token(request):
            await views._staff(request)
        text = await views._gateway(request).exposition.page()
        return HttpResponse(text, content_type=exposition.CONTENT_TYPE)


def _has_token(request: Request) -> bool:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    token: str = settings.METRICS_TOKEN
    given = scheme.lower() == "bearer" and secret.strip()
    return bool(token and given) and hmac.compare_digest(str(given).encode(), token.encode())


def counting_exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """What `errors.drf_exception_handler` makes of it, counted by the code in the answer."""
    response = errors.drf_exception_handler(exc, context)
    scope = getattr(getattr(context.get("request"), "_request", None), "scope", {})
    here = scope.get("state", {}).get(gateway.STATE)
    if response is not None and here is not None and isinstance(response.data, dict):
        code = response.data.get("error", {}).get("code") or "invalid_request"
        here.dispatcher.metrics.add(metrics.ERRORS, str(code))
    return response
