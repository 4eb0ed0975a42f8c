"""Every page behind the admin's login: what there is by the URLs, and what can be reached by links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

from tests.journeys.cluster import Cluster

ADMIN = "/admin/"
LOGIN = "/admin/login/"
SAME_EVERYWHERE = ("_history", "_delete", "_password_change")
"""Pages that one template makes for all models: one of each is looked at."""
LEAVES = ("admin:logout", "admin:jsi18n", "admin:autocomplete", "admin:view_on_site")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        href = dict(attributes).get("href")
        if tag == "a" and href:
            self.found.append(href)


@contextmanager
def client(cluster: Cluster, name: str = "admin", password: str = "") -> Iterator[httpx.Client]:
    """A client with a session of the admin."""
    with httpx.Client(base_url=cluster.url, timeout=20) as found:
        found.get(LOGIN)
        fields = {
            "username": name,
            "password": password or cluster.admin_password,
            "csrfmiddlewaretoken": found.cookies["csrftoken"],
            "next": ADMIN,
        }
        found.post(LOGIN, data=fields)
        yield found


def cookies(session: httpx.Client) -> list[Any]:
    """The same session for a browser."""
    host = urlsplit(str(session.base_url)).hostname
    return [{"name": k, "value": v, "domain": host, "path": "/"} for k, v in session.cookies.items()]


def kind(path: str) -> str:
    """What sort of page this is: pages of one kind differ in their rows alone. Empty if there is none."""
    try:
        match = resolve(path)
    except Resolver404:
        return ""
    alike = next((end for end in SAME_EVERYWHERE if match.view_name.endswith(end)), "")
    return alike or match.view_name or match.route


def crawl(session: httpx.Client, start: Iterable[str] = (ADMIN,)) -> dict[str, str]:
    """A page of each kind that links lead to, by kind."""
    found: dict[str, str] = {}
    todo = list(start)
    while todo:
        path = todo.pop(0)
        name = kind(path)
        if not name or name in found or name in LEAVES:
            continue
        answer = session.get(path)
        if answer.status_code in {301, 302}:
            todo.insert(0, urlsplit(urljoin(path, answer.headers["location"])).path)
            continue
        if "text/html" not in answer.headers.get("content-type", ""):
            continue
        found[name] = path
        todo += links(path, answer.text)
    return found


def links(base: str, html: str) -> list[str]:
    """Where a page's links under /admin/ lead, without what follows the path."""
    parser = _Links()
    parser.feed(html)
    paths = [urlsplit(urljoin(base, href)) for href in parser.found]
    return [found.path for found in paths if not found.netloc and found.path.startswith(ADMIN)]


def urls(within: str = "/") -> Iterator[str]:
    """A path for each URL that the site has, with 1 in place of its arguments."""
    yield from (path for path in _paths(get_resolver().url_patterns, "/") if path.startswith(within))


def _paths(patterns: Iterable[URLPattern | URLResolver], prefix: str) -> Iterator[str]:
    for pattern in patterns:
        path = prefix + _without_arguments(str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from _paths(pattern.url_patterns, path)
        elif pattern.name or path != f"{ADMIN}1":  # the admin's answer to all that it does not know
            yield path


def _without_arguments(route: str) -> str:
    """`node/<path:id>/` is `node/1/`; of a regular expression's alternatives the first is taken."""
    if "^" not in route and "(?P" not in route:
        return re.sub(r"<[^>]+>", "1", route)
    route = re.sub(r"\(\?P<\w+>(\w+)\|[^)]*\)", r"\1", route)
    route = re.sub(r"\(\?P<\w+>[^)]*\)\??", "1", route)
    return re.sub(r"[\^$?]|\\Z", "", route)
