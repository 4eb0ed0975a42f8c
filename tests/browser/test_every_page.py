"""Every page of the admin that links lead to, empty and with rows: who can use it, and what it believes.

One cluster for all: first as `bootstrap` leaves it, then with a row of every kind whose texts try to be HTML.
"""

from __future__ import annotations

import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from tests.browser import environment, furnished, keys, looking, site
from tests.browser.chromium import DESKTOP, Watched
from tests.browser.furnished import HIT
from tests.journeys.cluster import Cluster

OUTSIDE = ("/docs",)
SOCKET = "/ws/dashboard"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("pages")) as running:
        yield running


@pytest.fixture(scope="module")
def session(cluster):
    with site.client(cluster) as found:
        yield found


@pytest.fixture(scope="module")
def rows(cluster):
    furnished.furnish(cluster)


@pytest.fixture
def looker(browser, cluster, session):
    """A page of the operator that has axe-core in it."""
    if why := environment.missing_axe():
        pytest.fail(why) if environment.required() else pytest.skip(why)
    context = browser.new_context(viewport=DESKTOP)
    context.add_cookies(site.cookies(session))
    looking.prepare(context)
    watched = Watched(context.new_page(), cluster.url)
    yield watched
    context.close()
    assert not watched.wrong, "\n".join(watched.wrong)


def assert_well(watched: Watched, pages: list[str]) -> None:
    """Nothing is wrong with these pages, however they are looked at."""
    wrong = []
    for path in pages:
        page = watched.open(path)
        wrong += [f"{path} {what}" for what in looking.every_way(page)]
        wrong += [f"{path} took text for HTML" for _ in page.query_selector_all(f"#{HIT}")]
        wrong += [f"{path} ran a script out of text"] if page.evaluate("hit => window[hit]", HIT) else []
    assert not wrong, "\n".join(wrong)


def test_empty_pages(looker, session):
    lists = {kind: path for kind, path in site.crawl(session).items() if kind.endswith("_changelist")}
    assert len(lists) > 8
    assert_well(looker, list(lists.values()))


def test_pages_with_rows(looker, session, rows):
    pages = site.crawl(session)
    kinds = {kind.rpartition("_")[2] for kind in pages}
    assert {"changelist", "change", "add", "history"} <= kinds
    assert_well(looker, [*pages.values(), *OUTSIDE])


def test_the_login(looker):
    looker.page.context.clear_cookies()
    assert_well(looker, [site.LOGIN])
    looker.page.fill("#id_username", "admin")
    looker.page.fill("#id_password", "not this one")
    looker.page.click("button[type=submit]")
    assert not list(looking.every_way(looker.page))


def test_a_session_is_no_key(session):
    """What callers and agents send needs no form's token, since no cookie is taken for a key."""
    doors = set(site.urls()) - set(site.urls(site.ADMIN)) - {"/", "/favicon.ico"}
    assert len(doors) > 20
    let_in = {}
    for path in sorted(doors):
        status = session.post(path, json={}).status_code
        if status not in {401, 403, 404, 405} and not (path == "/register" and status == 422):
            let_in[path] = status
    assert not let_in


def test_who_is_not_staff_sees_nothing_of_the_admin(cluster):
    cookies = {"sessionid": furnished.guest_session(cluster)}
    let_in = {}
    with httpx.Client(base_url=cluster.url, cookies=cookies, timeout=20) as client:
        for path in set(site.urls(site.ADMIN)) - {site.LOGIN, "/admin/logout/"}:
            answer = client.get(path)
            to_login = answer.status_code == 302 and answer.headers["location"].startswith(site.LOGIN)
            if not to_login and answer.status_code not in {401, 403, 404, 405}:
                let_in[path] = answer.status_code
    assert not let_in


def test_sockets_are_for_staff_on_this_sites_pages(cluster, session):
    own = {"Cookie": f"sessionid={session.cookies['sessionid']}", "Origin": cluster.url}
    url = cluster.url.replace("http", "ws", 1) + SOCKET
    with connect(url, additional_headers=own) as socket:
        assert json.loads(socket.recv(timeout=20))
    strangers = [{**own, "Origin": "http://evil.example"}, {"Origin": cluster.url}]
    for headers in strangers:
        with (
            pytest.raises((InvalidStatus, ConnectionClosedError)),
            connect(url, additional_headers=headers) as socket,
        ):
            socket.recv(timeout=20)


def test_by_the_keyboard_alone(looker, cluster):
    page = looker.page
    page.context.clear_cookies()
    looker.open(site.LOGIN)
    keys.tab_to(page, "id_username")
    page.keyboard.type("admin")
    keys.tab_to(page, "id_password")
    page.keyboard.type(cluster.admin_password)
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/")
    keys.follow(page, "API keys", "**/admin/api/apikey/")
    keys.follow(page, "Skip to the content", "**#content")
    keys.follow(page, "demo", "**/admin/api/apikey/*/change/**")
    # What unfold has as clickable spans.
    page.goto(f"{cluster.url}/admin/")
    keys.tab_to(page, "A admin")
    page.keyboard.press("Enter")
    keys.tab_to(page, "Log out")
