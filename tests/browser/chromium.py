"""The browser that is installed on this machine, and pages in it that watch what they should not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

REQUIRED = "BROWSER_REQUIRED"
"""Set in the environment: a missing browser is a failure, not a skip."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE: ViewportSize = {"width": 390, "height": 844}
DESKTOP: ViewportSize = {"width": 1440, "height": 900}


def find() -> str:
    """Where the browser is ($CHROMIUM, or by its usual names); empty if there is none."""
    named = os.environ.get("CHROMIUM", "")
    return named or next((path for path in map(shutil.which, NAMES) if path), "")


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium without a window. Its own calls home are off, so that every request seen is a page's."""
    arguments = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, with what went wrong in it: errors in its console, failed scripts, requests to other hosts."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.wrong: list[str] = []
        page.on("console", lambda m: self.wrong.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: self.wrong.append(f"script: {e}"))
        page.on("request", self._asked)

    def _asked(self, request) -> None:
        local = (self.url, self.url.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(local):
            self.wrong.append(f"asked another host: {request.url}")

    def open(self, path: str) -> Page:
        """Go there."""
        self.page.goto(self.url + path)
        return self.page

    def log_in(self, password: str, name: str = "admin") -> Page:
        """Through the admin's own form."""
        self.open("/admin/login/?next=/admin/")
        self.page.fill("#id_username", name)
        self.page.fill("#id_password", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url("**/admin/")
        return self.page
