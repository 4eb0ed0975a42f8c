"""Logins to the admin: what is said to whoever was wrong too often, and what is forgotten of it."""

from __future__ import annotations

import datetime
import math
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.contrib import admin
from django.contrib.sessions.models import Session
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone


def locked_out(request: HttpRequest, *_: Any) -> HttpResponse:
    """429, with the time from which a login is tried again."""
    name = request.POST.get("username", "")
    address = getattr(request, "axes_ip_address", None)
    last = AccessAttempt.objects.filter(username=name, ip_address=address).order_by("-attempt_time").first()
    now = timezone.now()
    until = (last.attempt_time if last else now) + settings.AXES_COOLOFF_TIME
    seconds = max(1, math.ceil((until - now).total_seconds()))
    context = {
        **admin.site.each_context(request),
        "title": "Too many wrong passwords",
        "until": until,
        "seconds": seconds,
        "limit": settings.AXES_FAILURE_LIMIT,
    }
    answer = TemplateResponse(request, "backoffice/locked_out.html", context, status=429)
    answer["Retry-After"] = str(seconds)
    return answer.render()


def tidy() -> int:
    """Forget wrong logins that lock nobody out any more, and sessions that have expired. Returns how many."""
    now = timezone.now()
    old: datetime.datetime = now - settings.AXES_COOLOFF_TIME
    attempts = AccessAttempt.objects.filter(attempt_time__lt=old).delete()[0]
    return attempts + Session.objects.filter(expire_date__lt=now).delete()[0]
