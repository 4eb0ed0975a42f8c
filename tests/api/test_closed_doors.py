"""Every URL there is: who may not come in, what must not be forged, what answers tell browsers to refuse."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from tests.browser import site

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("wire", "quick")]

OPEN = {"/admin/login/", "/admin/logout/"}
"""Pages under /admin/ for who is not let in."""
ADMIN = sorted(set(site.urls(site.ADMIN)) - OPEN)


def a_user(name: str, **rights):
    return get_user_model().objects.create_user(name, password="not used here", **rights)


def visitor(user=None, **how) -> Client:
    client = Client(raise_request_exception=False, **how)
    if user:
        client.force_login(user)
    return client


def test_there_are_many_urls():
    """Else the tests below would say nothing."""
    assert len(ADMIN) > 80


@pytest.mark.parametrize("who", ["nobody", "not staff", "staff who has left"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_the_admin_is_for_staff(who, method):
    user = None
    if who != "nobody":
        user = a_user("guest", is_staff=who != "not staff", is_active=who == "not staff")
    client = visitor(user)
    let_in = {}
    for path in ADMIN:
        answer = getattr(client, method)(path)
        to_login = answer.status_code == 302 and answer.headers["Location"].startswith(site.LOGIN)
        no_gateway = (
            answer.status_code == 503 and b"no_gateway" in answer.content
        )  # there is none in this test
        if not to_login and not no_gateway and answer.status_code not in {401, 403, 404, 405}:
            let_in[path] = answer.status_code
    assert not let_in


def test_nothing_under_the_admin_is_changed_by_a_forged_form():
    client = visitor(a_user("root", is_staff=True, is_superuser=True), enforce_csrf_checks=True)
    taken = {}
    for path in sorted({*ADMIN, *OPEN}):
        status = client.post(path, {"confirm": "yes", "post": "yes"}).status_code
        if status not in {403, 404, 405}:
            taken[path] = status
    assert not taken


def test_every_answer_tells_what_its_page_may_load():
    client = visitor(a_user("root", is_staff=True, is_superuser=True))
    for path in [*site.urls(), "/no/such/path", "/admin/no/such/path"]:
        answer = client.get(path)
        policy = directives(answer.headers.get("Content-Security-Policy", ""))
        assert policy["default-src"] == ["'none'"], path
        assert policy["frame-ancestors"] == ["'none'"], path
        assert "'unsafe-inline'" not in policy["script-src"], path
        allowed = {word for words in policy.values() for word in words}
        if not path.startswith(site.ADMIN):
            assert not {"'unsafe-eval'", "'unsafe-inline'"} & allowed, path
        assert not [word for word in allowed if "//" in word or "*" in word], path
        answer.close()


def test_the_admin_s_looks_are_let_evaluate_and_style_in_place():
    """Without it browsers show the admin bare, and its menus do not open."""
    answer = visitor(a_user("root", is_staff=True, is_superuser=True)).get(site.ADMIN)
    policy = directives(answer.headers["Content-Security-Policy"])
    assert policy["script-src"] == ["'self'", "'unsafe-eval'"]
    assert policy["style-src"] == ["'self'", "'unsafe-inline'"]


def directives(policy: str) -> dict[str, list[str]]:
    parts = [part.split() for part in policy.split(";") if part.strip()]
    return {name: words for name, *words in parts}
