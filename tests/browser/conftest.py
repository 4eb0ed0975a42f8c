"""One browser for all tests here, and pages that must not complain."""

from __future__ import annotations

import pytest

from tests.browser import chromium, environment
from tests.browser.chromium import DESKTOP, Watched
from tests.journeys.cluster import Cluster


@pytest.fixture(scope="session")
def browser():
    if not chromium.find():
        why = "no Chromium here: apt install chromium, or CHROMIUM=path"
        if environment.required():
            pytest.fail(why)
        pytest.skip(why)
    with chromium.started() as found:
        yield found


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture
def fresh_page(browser, cluster):
    """Makes pages without a session; at the end none of them may have complained."""
    pages: list[Watched] = []

    def make(**options) -> Watched:
        page = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options).new_page()
        pages.append(Watched(page, cluster.url))
        return pages[-1]

    yield make
    wrong = [what for page in pages for what in page.wrong]
    for watched in pages:
        watched.page.context.close()
    assert not wrong, wrong


@pytest.fixture
def admin(fresh_page, cluster):
    """A page of the operator, logged in."""
    watched = fresh_page()
    watched.log_in(cluster.admin_password)
    return watched
