"""Who may come in: pages for people, which are told in words what they lack, and doors for our scripts."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render

from api.completion import refuse
from api.errors import ApiError, of_exception
from api.views import respond

Page = Callable[..., HttpResponse]
Door = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


def page(permission: str, purpose: str) -> Callable[[Page], Page]:
    """A page of the admin: without a session its login, without the permission a 403 that says what it takes
    to do this (`purpose`)."""

    def wrap(view: Page) -> Page:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.user.has_perm(permission):
                return view(request, *args, **kwargs)
            return forbidden(request, permission=permission, purpose=purpose)

        return admin.site.admin_view(guarded)

    return wrap


def forbidden(request: HttpRequest, exception: Exception | None = None, **needed: str) -> HttpResponse:
    """403 in the admin's looks, with its ways on; also for what Django's own pages refuse."""
    context = {**admin.site.each_context(request), "title": "Not allowed", **needed}
    return render(request, "dashboard/forbidden.html", context, status=403)


def door(*methods: str) -> Callable[[Door], Door]:
    """An asynchronous view for scripts: every refusal has the API's shape. It looks after its own session
    (`api.signed_in`); Django's middleware has checked the CSRF token."""

    def wrap(view: Door) -> Door:
        @wraps(view)
        async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                if request.method not in methods:
                    allow = ", ".join(methods).encode()
                    raise ApiError("method_not_allowed", "Not this method.", headers=[(b"allow", allow)])
                response = await view(request, *args, **kwargs)
            except Exception as e:
                error = of_exception(e)
                if error is None:
                    raise
                response = respond(refuse(error))
            response["Cache-Control"] = "no-store"
            return response

        return guarded

    return wrap
