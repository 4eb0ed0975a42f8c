"""The admin's looks: its name, its colours and what stands in its sidebar, in the words of django-unfold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _page(title: str, icon: str, view: str, permission: str = "") -> dict[str, Any]:
    """One line of the sidebar, for who has the permission. `view` is an URL's name; icons are Material's."""
    page = {"title": title, "icon": icon, "link": reverse_lazy(view)}
    return page | ({"permission": lambda request: request.user.has_perm(permission)} if permission else {})


def _rows(title: str, icon: str, model: str) -> dict[str, Any]:
    app, name = model.split(".")
    return _page(title, icon, f"admin:{app}_{name}_changelist", f"{app}.view_{name}")


def _file(path: str) -> Callable[[HttpRequest], str]:
    """The address of a static file, which nobody can say before the settings are read."""
    return lambda request: static(path)


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "GPU Torrent",
    "SITE_HEADER": "GPU Torrent",
    "SITE_SYMBOL": "hub",
    "SHOW_VIEW_ON_SITE": False,
    "SCRIPTS": [_file("backoffice/times.js"), _file("dashboard/access.js")],
    "STYLES": [_file("backoffice/palette.css"), _file("dashboard/access.css")],
    "COLORS": {
        "primary": {  # a blue that white text can be read on
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        },
    },
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    _page("Dashboard", "monitoring", "admin:index"),
                    _page("Playground", "chat", "playground", "jobs.add_job"),
                    _page("Join a host", "add_circle", "join", "nodes.add_enrolmenttoken"),
                ]
            },
            {
                "title": "Cluster",
                "separator": True,
                "items": [
                    _rows("Nodes", "dns", "nodes.node"),
                    _rows("Models", "deployed_code", "nodes.nodemodel"),
                    _rows("GPUs", "memory", "nodes.gpu"),
                    _rows("Events", "history", "nodes.nodeevent"),
                    _rows("Enrolment tokens", "vpn_key", "nodes.enrolmenttoken"),
                ],
            },
            {
                "title": "Work",
                "separator": True,
                "items": [
                    _rows("Jobs", "list_alt", "jobs.job"),
                    _rows("Batches", "stacks", "jobs.batch"),
                    _rows("Files", "description", "jobs.storedfile"),
                ],
            },
            {
                "title": "Access",
                "separator": True,
                "items": [
                    _rows("API keys", "key", "api.apikey"),
                    _rows("Usage", "bar_chart", "api.usage"),
                    _rows("Users", "group", "auth.user"),
                    _rows("Groups", "groups", "auth.group"),
                ],
            },
            {
                "title": "System",
                "separator": True,
                "items": [
                    _page("Queues", "queue", "django_rq:home"),
                    _page("API reference", "api", "docs"),
                    _rows("Log", "receipt_long", "admin.logentry"),
                ],
            },
        ],
    },
}
