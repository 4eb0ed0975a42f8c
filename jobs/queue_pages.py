"""django-rq's pages, to look at: its queues, the tasks in them, and its workers.

None of its actions is served. A task that is deleted or run again by hand changes nothing for long: the sweep
queues what the ledger says is open, and tasks find out by themselves whether there is still something to do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import redis
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.views.decorators.http import require_safe
from django_rq.urls import app_name, get_admin_urlpatterns

_SHOWN: Final = frozenset(
    {
        "home",
        "jobs",
        "finished_jobs",
        "failed_jobs",
        "scheduled_jobs",
        "started_jobs",
        "job_detail",
        "workers",
    }
)


def _page(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    @wraps(view)
    def shown(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except redis.RedisError:
            context = {**admin.site.each_context(request), "title": "Queues"}
            return TemplateResponse(request, "django_rq/away.html", context, status=503)

    return admin.site.admin_view(require_safe(shown))


patterns: list[URLPattern] = [p for p in get_admin_urlpatterns(view_wrapper=_page) if p.name in _SHOWN]
included = (patterns, app_name)
"""For `include`: by the names that django-rq gives them."""
