"""The way into the admin."""

from __future__ import annotations

import re

from playwright.sync_api import expect


def test_an_operator_logs_in_and_finds_the_lists(admin):
    page = admin.page
    expect(page).to_have_title(re.compile("GPU Torrent"))
    page.get_by_role("link", name="Nodes", exact=True).first.click()
    expect(page).to_have_url(f"{admin.url}/admin/nodes/node/")


def test_a_wrong_password_is_refused_and_five_are_enough(fresh_page, cluster):
    watched = fresh_page()
    page = watched.open("/admin/")
    for _ in range(4):
        page.fill("#id_username", "admin")
        page.fill("#id_password", "not this one")
        page.click("button[type=submit]")
        expect(page.locator("body")).to_contain_text("correct username and password")
    page.fill("#id_username", "admin")
    page.fill("#id_password", "not this one")
    with page.expect_response("**/admin/login/**") as answered:
        page.click("button[type=submit]")
    assert answered.value.status == 429
    watched.wrong.clear()  # the browser notes a 429 as an error of the page
