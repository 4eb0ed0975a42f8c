"""The live dashboard in a real browser, against a cluster that works, breaks and comes back."""

from __future__ import annotations

import re
import threading

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import DESKTOP, PHONE, Watched
from tests.journeys.cluster import FAST, MODEL, Cluster

PATIENCE = 15_000
SOON = 10_000  # milliseconds in which a lost node must be shown


@pytest.fixture
def page(admin):
    return admin.page


def asking(cluster: Cluster, **body) -> threading.Thread:
    """A request whose caller waits, in a thread."""
    thread = threading.Thread(target=lambda: cluster.chat("hello", **body), daemon=True)
    thread.start()
    return thread


def test_the_first_page_says_what_to_do_next(page):
    expect(page.get_by_text("No GPU host has joined yet.").first).to_be_visible()
    expect(page.get_by_role("link", name="Join a host").last).to_have_attribute("href", "/admin/join/")
    expect(page.locator("pre")).to_contain_text(f"curl {page.url.split('/admin')[0]}/v1/chat/completions")


def test_it_moves_while_a_job_runs_and_a_range_is_picked(page, cluster):
    cluster.agent_ready("lab-a", "--per-second", "10")
    card = page.get_by_role("article", name="Node lab-a")
    expect(card).to_contain_text("online", timeout=PATIENCE)
    expect(card).to_contain_text("ready")
    expect(page.get_by_text("All is well: 1 node online, 1 model ready.")).to_be_visible(timeout=PATIENCE)
    link = card.get_by_role("link", name="lab-a")
    link.focus()
    thread = asking(cluster, max_tokens=60)
    jobs = page.locator("[data-part=jobs]")
    expect(jobs).to_contain_text("running", timeout=PATIENCE)
    expect(jobs).to_contain_text(MODEL)
    for width in (1280, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert jobs.get_by_role("link").first.evaluate("e => e.getClientRects().length") == 1
    expect(card).to_contain_text("1 in flight")
    expect(link).to_be_focused()  # what changes around it does not take the focus away
    thread.join()
    expect(jobs).to_contain_text("Nothing runs and nothing waits", timeout=PATIENCE)
    expect(page.locator("[data-part=figures]")).to_contain_text("1 in the last minute", timeout=PATIENCE)
    page.get_by_role("radio", name="5m").check()
    chart = page.locator("[data-chart=requests]")
    expect(chart.locator("canvas")).to_be_visible(timeout=40_000)
    expect(chart.locator("p")).to_contain_text(re.compile(r"requests: now .*, most 0\.1"), timeout=40_000)
    # What lays the page out for a moment without them, such as a picture of it, takes no curves away.
    page.evaluate(
        """async () => {
          const charts = document.querySelector(".gt-charts");
          for (const how of ["none", ""]) {
            charts.style.display = how;
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          }
        }"""
    )
    expect(chart.locator("canvas")).to_be_visible()


def test_curves_have_the_viewers_own_times(fresh_page, cluster):
    watched = fresh_page(locale="de-DE", timezone_id="Asia/Tokyo")
    page = watched.log_in(cluster.admin_password)
    chart = page.locator("[data-chart=requests]")
    chart.locator(".u-over").hover(timeout=40_000)
    said = chart.locator(".u-value").first
    now = page.evaluate("new Intl.DateTimeFormat('de-DE', {month: 'short', day: 'numeric'}).format()")
    expect(said).to_contain_text(now)
    expect(said).not_to_contain_text(re.compile("[ap]m", re.IGNORECASE))


def test_a_long_name_of_a_model_is_not_cut_on_a_card(fresh_page, cluster):
    name = "some-organisation/A-Model-Whose-Name-Says-All-That-Was-Done-To-It-AWQ-4bit-Instruct"
    cluster.manage(
        "shell",
        "-c",
        "from nodes.models import *;"
        "n = Node.objects.create(pk='e' * 16, name='lab-e', state='unhealthy');"
        f"NodeModel.objects.create(node=n, name={name!r}, state='offered', slots=1)",
    )
    page = fresh_page(viewport=PHONE).log_in(cluster.admin_password)
    shown = page.get_by_role("article", name="Node lab-e").get_by_text(name)
    expect(shown).to_be_visible(timeout=PATIENCE)
    assert shown.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_node_that_dies_is_shown_within_ten_seconds(browser, tmp_path):
    """With the times of production: the fast ones would show nothing."""
    with Cluster(tmp_path, **dict.fromkeys(FAST, "")) as cluster:
        agent = cluster.agent_ready("lab-a")
        watched = Watched(browser.new_context(viewport=DESKTOP).new_page(), cluster.url)
        page = watched.log_in(cluster.admin_password)
        card = page.get_by_role("article", name="Node lab-a")
        expect(card).to_contain_text("online", timeout=PATIENCE)
        agent.kill()
        expect(page.get_by_text("1 node does not answer: lab-a.")).to_be_visible(timeout=SOON)
        expect(card).to_contain_text("does not answer")
        assert watched.wrong == []
        page.context.close()


def test_it_says_when_it_is_stale_and_recovers(admin, cluster):
    page = admin.page
    banner = page.locator("#gt-stale")
    expect(page.get_by_text("No GPU host has joined yet.").first).to_be_visible()
    expect(banner).to_be_hidden()
    cluster.web[0].kill()
    expect(banner).to_be_visible(timeout=PATIENCE)
    expect(banner).to_contain_text(re.compile(r"connection is lost; trying again.*It was so \d+ s ago"))
    cluster.start_web()
    expect(banner).to_be_hidden(timeout=30_000)
    admin.wrong[:] = [w for w in admin.wrong if "127.0.0.1" not in w and "ERR_CONNECTION" not in w]


def test_who_logs_out_elsewhere_is_told(admin, cluster):
    page = admin.page
    change = "from django.contrib.auth.models import User; User.objects.update(is_staff=False)"
    cluster.manage("shell", "-c", change)
    expect(page.locator("#gt-stale")).to_contain_text("You are logged out", timeout=40_000)


def test_names_of_nodes_models_and_gpus_are_never_html(page, cluster):
    evil = '<img src=x onerror="document.title=1">'
    cluster.manage(
        "shell",
        "-c",
        "from nodes.models import *;"
        f"evil = {evil!r};"
        "n = Node.objects.create(pk='e' * 16, name='lab-e', state='unhealthy', state_reason=evil);"
        "Gpu.objects.create(node=n, index=0, uuid='u', name=evil, vram_total=2**34, vram_free=2**33);"
        "NodeModel.objects.create(node=n, name=evil, state='failed', slots=1, reason=evil);"
        "NodeEvent.objects.create(node=n, was='online', now='unhealthy', reason=evil)",
    )
    card = page.get_by_role("article", name="Node lab-e")
    expect(card).to_contain_text(evil, timeout=PATIENCE)
    expect(page.locator("[data-part=events]")).to_contain_text(evil)
    page.reload()  # the first paint as well
    expect(card).to_contain_text(evil)
    assert page.locator("img[src=x]").count() == 0


def test_nodes_are_looked_for_and_the_address_remembers(page, cluster):
    cluster.manage(
        "shell",
        "-c",
        "from nodes.models import *;"
        "Node.objects.bulk_create(Node(pk=f'{i:016x}', name=f'n{i:03}', state='gone') for i in range(120))",
    )
    listing = page.locator("[data-part=listing]")
    expect(listing).to_contain_text("120 nodes, page 1 of 3", timeout=PATIENCE)
    assert page.get_by_role("article").count() == 48
    listing.get_by_role("button", name="Next").click()
    expect(page.get_by_role("article", name="Node n048")).to_be_visible()
    page.get_by_role("searchbox").fill("n11")
    expect(listing).to_contain_text("10 of 120 nodes")
    expect(page).to_have_url(re.compile(r"\?q=n11$"))
    page.reload()
    expect(listing).to_contain_text("10 of 120 nodes")
    expect(page.get_by_role("searchbox")).to_have_value("n11")


def test_on_a_phone_nothing_is_cut_off(fresh_page, cluster):
    watched = fresh_page(viewport=PHONE)
    page = watched.log_in(cluster.admin_password)
    cluster.agent_ready("lab-a")
    expect(page.get_by_role("article", name="Node lab-a")).to_contain_text("ready", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_socket_is_not_for_strangers(cluster):
    answer = httpx.get(
        f"{cluster.url}/ws/dashboard",
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Origin": "https://evil.example",
        },
    )
    assert answer.status_code == 403
