"""All paths. Callers' and agents' paths carry no trailing slash."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views.generic import RedirectView

from dashboard.consumer import DashboardConsumer
from jobs import queue_pages

admin.site.site_header = admin.site.site_title = "GPU Torrent"
admin.site.index_title = "Cluster"


def no_icon(request: HttpRequest) -> HttpResponse:
    """Browsers ask for an icon by themselves; a 404 would stand in every console."""
    return HttpResponse(status=204)


urlpatterns = [
    path("favicon.ico", no_icon),
    path("", include("api.urls")),
    path("", include("nodes.urls")),
    path("", include("jobs.urls")),
    path("admin/django-rq/", include(queue_pages.included)),
    path("admin/", include("dashboard.urls")),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]

websocket_urlpatterns: list[Any] = [
    path("ws/dashboard", DashboardConsumer.as_asgi()),
]

handler400 = "api.views.bad_request"
handler403 = "dashboard.guard.forbidden"
handler404 = "api.views.no_such_path"
handler500 = "api.views.server_error"
