"""The admin's lists in a browser: nodes drained and resumed, a key made and used, a job cancelled."""

from __future__ import annotations

import threading

import httpx
from playwright.sync_api import expect

from tests.journeys.cluster import MODEL


def choose(page, action: str) -> None:
    """Tick the first row and choose an action for it."""
    page.locator("input.action-select").first.check()
    page.locator("select[name=action]").select_option(label=action)
    page.locator("#changelist-actions-wrapper button[type=submit]").first.click()


def test_a_node_is_drained_and_resumed(admin, cluster):
    cluster.agent_ready("lab-a")
    page = admin.open("/admin/nodes/node/")
    choose(page, "Drain")
    expect(page.get_by_text("No new work goes there")).to_be_visible()
    assert cluster.workers()["lab-a"]["state"] == "online"  # asked, not yet done
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_text("Draining: lab-a")).to_be_visible()
    expect(page.locator(".field-shown_state")).to_contain_text("draining")
    assert cluster.workers()["lab-a"]["state"] == "draining"

    page.get_by_role("link", name="lab-a").first.click()
    page.get_by_role("link", name="Resume").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Resumed: lab-a")).to_be_visible()
    cluster.until(lambda: cluster.serves("lab-a"), "it serves again", 15)
    assert page.locator("time[data-local][title]").count() > 0  # in the viewer's zone


def test_a_key_is_made_used_and_revoked(admin, cluster):
    cluster.agent_ready("lab-a")
    page = admin.open("/admin/api/apikey/add/")
    page.fill("#id_name", "alice")
    page.get_by_role("button", name="Save", exact=True).click()
    secret = page.get_by_label("API key alice").input_value()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    headers = {"Authorization": f"Bearer {secret}"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}

    def asked() -> int:
        answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=chat, headers=headers, timeout=30)
        return answer.status_code

    cluster.until(lambda: asked() == 200, "the key is taken", 10)
    page.reload()  # makes no second key, and shows no secret
    expect(page.locator("#id_name")).to_have_value("alice")
    assert secret not in page.content()
    page.get_by_role("link", name="Revoke").click()
    expect(page.get_by_text("refused within a second")).to_be_visible()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Revoked: alice")).to_be_visible()
    cluster.until(lambda: asked() == 401, "the key is refused", 10)


def test_times_are_typed_as_they_are_read(fresh_page, cluster):
    watched = fresh_page(timezone_id="Asia/Tokyo")
    page = watched.log_in(cluster.admin_password)
    page = watched.open("/admin/api/apikey/add/")
    assert page.evaluate("document.body.dataset.adminUtcOffset") == str(9 * 3600)
    expect(page.locator(".timezonewarning")).to_have_count(0)


def test_a_running_job_is_cancelled_and_its_page_shows_its_life(admin, cluster):
    cluster.agent_ready("lab-a", "--per-second", "5")
    told: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: told.append(cluster.chat("hello", max_tokens=200)))
    waiting.start()
    cluster.until(lambda: cluster.get("/jobs?state=running").json()["data"], "it runs", 15)
    page = admin.open("/admin/jobs/job/?state=running")
    page.get_by_role("link", name="…").first.click()
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled (cancelled)")).to_be_visible()
    waiting.join(15)
    assert told[0].json()["error"]["code"] == "cancelled"


def test_queues_log_and_the_apis_page_open_without_a_complaint(admin, cluster):
    page = admin.open("/admin/django-rq/")
    expect(page.get_by_role("rowheader", name="routing")).to_be_visible()
    page = admin.open("/admin/admin/logentry/")
    expect(page.get_by_role("heading", name="Log entries")).to_be_visible()
    page = admin.open("/docs")
    expect(page.get_by_text("/v1/chat/completions").first).to_be_visible(timeout=20_000)
