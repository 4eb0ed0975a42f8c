"""What pages may load and run, told to browsers with every answer: strict, and looser under /admin/."""

from __future__ import annotations

from typing import Any

from csp.middleware import CSPMiddleware
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

_ADMIN = "/admin/"


class ContentPolicy(CSPMiddleware):
    """`CONTENT_SECURITY_POLICY`, with `ADMIN_CONTENT_SECURITY_POLICY` for the admin's pages."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> Any:
        parts = super().get_policy_parts(request, response, report_only)
        if request.path.startswith(_ADMIN):
            parts.replace = settings.ADMIN_CONTENT_SECURITY_POLICY | (parts.replace or {})
        return parts
