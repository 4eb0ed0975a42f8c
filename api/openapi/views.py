"""``GET /schema`` and the page at ``/docs`` that shows it."""

from __future__ import annotations

import functools

import msgspec
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from drf_spectacular.generators import SchemaGenerator
from rest_framework.views import APIView


@functools.cache
def document() -> bytes:
    """The OpenAPI document. Made at the first request: it changes with the code alone."""
    return msgspec.json.encode(SchemaGenerator().get_schema(request=None, public=True))


class SchemaView(APIView):
    """``GET /schema``: OpenAPI 3.1, as JSON. Open to all: it tells nothing of this cluster."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(document(), content_type="application/json")


def docs(request: HttpRequest) -> HttpResponse:
    """``GET /docs``: Swagger UI, served from here, under the same policy as every page outside the admin."""
    return render(request, "api/docs.html", {"schema": "/schema"})
