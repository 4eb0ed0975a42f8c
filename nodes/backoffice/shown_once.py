"""The page that shows new secrets, once: an answer of its own, since a message would lie in a cookie."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.cache import add_never_cache_headers


def page(request: HttpRequest, admin: ModelAdmin, secrets: list[tuple[str, str]], back: str) -> HttpResponse:
    """`secrets`: of what, and the secret. `back` is where the page leads to, also when it is loaded again."""
    context: dict[str, Any] = {
        **admin.admin_site.each_context(request),
        "title": "Copy it now: it is not shown again",
        "opts": admin.opts,
        "media": admin.media,
        "secrets": secrets,
        "back": back,
    }
    answer = TemplateResponse(request, "backoffice/secrets.html", context)
    add_never_cache_headers(answer)
    return answer
