"""Asking a model in the playground: streamed, stopped, refused."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import PHONE
from tests.journeys.cluster import MODEL, Cluster

PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A coordinator and a node whose engine makes 20 tokens a second."""
    with Cluster(tmp_path_factory.mktemp("playground")) as running:
        running.agent_ready("lab-a", "--per-second", "20")
        yield running


@pytest.fixture
def page(admin):
    page = admin.open("/admin/playground/")
    page.set_default_timeout(PATIENCE_MS)
    expect(page.locator("#standing")).to_contain_text("loaded on 1 node", timeout=PATIENCE_MS)
    return page


def ask(page, text: str, **settings: str) -> None:
    for name, value in settings.items():
        page.fill(f"#{name}", value)
    page.fill("#prompt", text)
    page.click("#send")


def ended(page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words, timeout=PATIENCE_MS)


def engine(cluster) -> dict[str, int]:
    return httpx.get(f"http://127.0.0.1:{cluster.engine_port('lab-a')}/fake/stats", timeout=5).json()


def test_a_chat_is_streamed_with_its_figures_and_goes_on(page, cluster):
    ask(page, "red green blue", max_tokens="8", temperature="0.5", seed="7")
    ended(page, "Done: 8 tokens")
    answer = page.locator("article.answer")
    expect(answer.locator(".text")).to_have_text(re.compile("red green blue red"))
    figures = answer.locator(".figures")
    for part in ("first token", "tokens/s", "lab-a", "completed"):
        expect(figures).to_contain_text(part, timeout=PATIENCE_MS)
    job = figures.get_by_role("link").inner_text()
    assert cluster.job(job)["key"]["name"] == "playground: admin"

    request = page.locator("#request").text_content()
    assert json.loads(request.partition("\n\n")[2])["seed"] == 7
    assert page.locator("#response").text_content().rstrip().endswith("data: [DONE]")
    assert f"{cluster.url}/v1/chat/completions" in page.locator("#curl").text_content()
    code = page.locator("#python").text_content()
    compile(code, "shown", "exec")
    assert "temperature=0.5" in code

    ask(page, "and yellow")
    ended(page, "Done")
    messages = json.loads(page.locator("#request").text_content().partition("\n\n")[2])["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    page.click("#retry")
    ended(page, "Done")
    expect(page.locator("article")).to_have_count(4)
    page.click("#clear")
    expect(page.locator("article")).to_have_count(0)


def test_stop_stops_the_engine_and_leaving_does_too(page, cluster):
    for leave in (False, True):
        before = engine(cluster)["aborted"]
        ask(page, "one two three", max_tokens="1500")
        cluster.until(lambda: engine(cluster)["running"] == 1, "the engine works", 15)
        expect(page.locator("article.answer .text").last).to_have_text(re.compile("one"), timeout=PATIENCE_MS)
        if leave:
            page.goto(cluster.url + "/admin/")
        else:
            page.click("#stop")
            ended(page, "Stopped")
            expect(page.locator(".figures").last).to_contain_text("cancelled", timeout=PATIENCE_MS)
        cluster.until(lambda b=before: engine(cluster)["aborted"] == b + 1, "the engine stopped", 15)
        assert engine(cluster)["running"] == 0


def test_an_answer_that_is_not_streamed_can_be_stopped_before_it_comes(page, cluster):
    before = engine(cluster)["aborted"]
    page.uncheck("#stream")
    ask(page, "one two", max_tokens="4")
    ended(page, "Done")
    expect(page.locator(".figures")).to_contain_text("lab-a", timeout=PATIENCE_MS)
    ask(page, "one two three", max_tokens="1500")
    cluster.until(lambda: engine(cluster)["running"] == 1, "the engine works", 15)
    page.click("#stop")
    ended(page, "Stopped")
    cluster.until(lambda: engine(cluster)["aborted"] == before + 1, "the engine stopped", 15)


def test_models_are_asked_about_often_only_while_one_waits_for_them(admin, cluster):
    page = admin.page
    page.clock.install()
    looks: list[str] = []
    ended: list[str] = []
    for event, into in (("request", looks), ("requestfinished", ended)):
        page.on(event, lambda r, into=into: into.append(r.url) if r.url.endswith("/models") else None)

    def looks_in(seconds: int) -> int:
        """By the page's clock; each look is let come to its end."""
        before = len(looks)
        for _ in range(seconds):
            page.clock.run_for(1000)
            page.wait_for_timeout(10)
            cluster.until(lambda: page.evaluate("0") or len(ended) == len(looks), "the list is there", 10)
        return len(looks) - before

    admin.open("/admin/playground/")
    standing = page.locator("#standing")
    expect(standing).to_contain_text("loaded on 1 node", timeout=PATIENCE_MS)
    assert looks_in(40) <= 5
    cluster.manage("node", "drain", "lab-a")
    try:
        cluster.until(lambda: cluster.workers()["lab-a"]["state"] == "draining", "it drains", 10)
        assert looks_in(12) > 0
        expect(standing).to_contain_text("no node")
        assert looks_in(20) >= 8
    finally:
        cluster.manage("node", "resume", "lab-a")
        cluster.until(lambda: cluster.serves("lab-a"), "it serves again", 15)


def test_a_plain_completion_goes_on_from_its_text(page):
    page.get_by_label("Plain completion").check()
    expect(page.locator("#system")).to_be_hidden()
    ask(page, "once upon", max_tokens="4")
    ended(page, "Done")
    expect(page.locator("article.answer .text")).to_have_text(re.compile("^once uponon?ce"))
    assert page.locator("#request").text_content().startswith("POST /v1/completions")


def test_a_refusal_is_shown_with_its_code_and_request(page, admin):
    ask(page, "hello", max_tokens="999999")
    error = page.locator(".error")
    expect(error).to_contain_text("rejected_by_engine")
    expect(error).to_contain_text("does not fit")
    expect(error).to_contain_text("request id")
    admin.wrong.clear()  # the browser notes a 400 as an error of the page


def test_what_a_model_says_is_text_and_never_html(page):
    ask(page, "<img src=x onerror=alert(1)> <b>bold</b>", max_tokens="6")
    ended(page, "Done")
    expect(page.locator("article.answer .text")).to_contain_text("<b>bold</b>")
    assert page.locator("#log img, #log b").count() == 0


@pytest.mark.parametrize("how", [{"viewport": PHONE}, {"color_scheme": "dark"}], ids=["phone", "dark"])
def test_nothing_is_wider_than_the_screen(fresh_page, cluster, how):
    watched = fresh_page(**how)
    watched.log_in(cluster.admin_password)
    page = watched.open(f"/admin/playground/?model={quote(MODEL)}")
    expect(page.locator("#standing")).to_contain_text("loaded", timeout=PATIENCE_MS)
    page.evaluate("document.getElementById('parameters').open = true")  # closed on a phone
    ask(page, "x" * 300, max_tokens="20")
    ended(page, "Done")
    for summary in page.locator("#shown summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_without_a_node_the_page_says_what_to_do(fresh_page, tmp_path, browser):
    with Cluster(tmp_path) as empty:
        watched = fresh_page()
        watched.url = empty.url
        watched.log_in(empty.admin_password)
        page = watched.open("/admin/playground/")
        expect(page.get_by_role("link", name="Join a GPU host")).to_be_visible()
        expect(page.locator("#standing")).to_be_hidden()
        page.fill("#prompt", "hello")
        page.click("#send")
        expect(page.locator("#status")).to_have_text("There is no model to ask yet.")
        page.get_by_role("link", name="Join a GPU host").click()
        expect(page).to_have_url(f"{empty.url}/admin/join/")
