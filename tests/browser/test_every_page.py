"""Every page that links and forms of the admin lead to: who can use it, and what it believes.

One cluster for all: first as `bootstrap` leaves it, then with a row of every kind whose texts try to be HTML.
"""

from __future__ import annotations

import json

import httpx
import pytest
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from tests.browser import environment, furnished, keys, looking, site
from tests.browser.chromium import DESKTOP, Watched
from tests.browser.furnished import HIT, NASTY
from tests.journeys.cluster import Cluster

SOCKET = "/ws/dashboard"
STEPS = (
    ("nodes/node", "Drain", True),
    ("nodes/node", "Revoke", False),
    ("nodes/nodemodel", "Load", True),
    ("jobs/job", "Cancel", True),
    ("api/apikey", "Rotate", True),
    ("api/apikey", "Revoke", False),
    ("nodes/enrolmenttoken", "Revoke", False),
    ("auth/group", "Delete selected groups", False),
)
"""Of a list, what can be done to its rows, and whether it is done here: other tests want the rows."""


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


def wrong_with(page: Page, called: str) -> list[str]:
    """What is wrong with the page that is open, however it is looked at."""
    wrong = [f"{called} {what}" for what in looking.every_way(page)]
    wrong += [f"{called} took text for HTML" for _ in page.query_selector_all(f"#{HIT}")]
    wrong += [f"{called} ran a script out of text"] if page.evaluate("hit => window[hit]", HIT) else []
    page.set_viewport_size(DESKTOP)
    return wrong


def assert_well(watched: Watched, pages: list[str]) -> None:
    """Nothing is wrong with these pages."""
    wrong = [what for path in pages for what in wrong_with(watched.open(path), path)]
    assert not wrong, "\n".join(wrong)


def test_empty_pages(looker, session):
    lists = {kind: path for kind, path in site.crawl(session).items() if kind.endswith("_changelist")}
    assert len(lists) > 8
    assert_well(looker, list(lists.values()))


def test_pages_with_rows(looker, session, rows):
    pages = site.crawl(session)
    kinds = {kind.rpartition("_")[2] for kind in pages}
    assert {"changelist", "change", "add", "history"} <= kinds
    assert_well(looker, list(pages.values()))


def test_the_apis_page(looker):
    """It is built by its script: without a wait an empty page would pass."""
    page = looker.open("/docs")
    page.locator(".opblock-summary-control").first.click()
    page.locator(".opblock-body .microlight").first.wait_for()
    assert not (wrong := wrong_with(page, "/docs")), "\n".join(wrong)


def test_steps_ask_first_and_say_what_came_of_it(looker, rows):
    wrong = []
    for rows_of, title, done in STEPS:
        page = looker.open(f"/admin/{rows_of}/")
        for box in page.locator("input.action-select").all():
            box.check()
        page.locator("select[name=action]").select_option(label=title)
        page.locator("#changelist-actions-wrapper button[type=submit]").first.click()
        expect(page.locator("#changelist-actions-wrapper")).to_have_count(0)
        expect(page.locator("#content form[method=post]")).to_be_visible()
        wrong += wrong_with(page, f"{title} {rows_of}?")
        if done:
            page.locator("#content form[method=post] [type=submit]").click()
            expect(page.locator("#bo-what")).to_have_count(0)
            wrong += wrong_with(page, f"{title} {rows_of}: done")
    assert not wrong, "\n".join(wrong)


def test_secrets_shown_once_and_forms_refused(looker):
    wrong = []
    for made, field in (("api/apikey", "name"), ("nodes/enrolmenttoken", "note")):
        page = looker.open(f"/admin/{made}/add/")
        page.fill("#id_expires_at_0", "no date")
        page.locator("[name=_save]").click()
        expect(page.get_by_text("Enter a valid").first).to_be_visible()
        wrong += wrong_with(page, f"{made}: refused")
        page.fill(f"#id_{field}", NASTY[:60])
        page.fill("#id_expires_at_0", "")
        page.fill("#id_expires_at_1", "")
        page.locator("[name=_save]").click()
        expect(page.get_by_role("button", name="Copy")).to_be_visible()
        wrong += wrong_with(page, f"{made}: made")
    page = looker.open("/admin/join/")
    page.locator("#join-form button[type=submit]").click()
    looker.wrong.clear()  # the browser notes a 400 as an error of the page
    wrong += wrong_with(page, "join: refused")
    page.fill("#id_loaded", "m")
    page.fill("#id_note", NASTY)
    page.locator("#join-form button[type=submit]").click()
    expect(page.locator("#command")).to_be_visible()
    wrong += wrong_with(page, "join: made")
    assert not wrong, "\n".join(wrong)


def test_lists_fit_a_small_desktop(looker, session, rows):
    wide = {}
    for path in ("/admin/jobs/job/", "/admin/api/usage/"):
        page = looker.open(path)
        page.set_viewport_size({"width": 1280, "height": 800})
        table = page.locator("#result_list")
        wide[path] = table.evaluate("t => t.scrollWidth - t.closest('.simplebar-content').clientWidth")
    assert all(beyond <= 0 for beyond in wide.values()), wide


def test_the_login_and_the_way_out(looker, cluster):
    page = looker.page
    page.context.clear_cookies()
    assert_well(looker, [site.LOGIN])
    wrong = []
    for told in (*["correct username"] * 4, "Too many wrong passwords"):
        page.fill("#id_username", "nobody")
        page.fill("#id_password", "not this one")
        page.click("button[type=submit]")
        expect(page.locator("body")).to_contain_text(told)
        wrong += wrong_with(page, f"login: {told}")
    looker.wrong.clear()  # the browser notes a 429 as an error of the page
    looker.log_in(cluster.admin_password)
    page.evaluate("document.getElementById('logout-form').submit()")
    page.wait_for_url("**/admin/logout/**")
    wrong += wrong_with(page, "logged out")
    assert not wrong, "\n".join(wrong)


def test_who_may_do_little_is_told_so(looker, cluster):
    cookie = {"name": "sessionid", "value": furnished.guest_session(cluster, staff=True), "url": cluster.url}
    page = looker.page
    page.context.clear_cookies()
    page.context.add_cookies([cookie])
    assert_well(looker, [site.ADMIN, "/admin/playground/", "/admin/join/", "/admin/nodes/node/"])
    expect(page.get_by_role("link", name="Dashboard", exact=True)).to_be_visible()  # a way on
    looker.wrong.clear()  # the browser notes a 403 as an error of the page


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
