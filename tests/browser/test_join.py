"""A host joins: the token made on the page, its command run as it is shown, the page green by itself."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest
from playwright.sync_api import expect

from gputorrent.children import Child
from tests import fake_docker
from tests.browser.chromium import PHONE
from tests.fake_vllm import write_wrapper
from tests.journeys.cluster import MODEL, Cluster

PATIENCE_MS = 120_000  # the command makes an environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("join")) as running:
        yield running


def paste(cluster: Cluster, home: Path, command: str, mark: str, **env: str) -> Child:
    """Run the command in a shell of a user who has nothing yet. Its dependencies come from this environment,
    the agent from the coordinator alone."""
    home.mkdir(exist_ok=True)
    return cluster.start(
        "pasted",
        ["env", "-C", str(home), "sh", "-c", command],
        grace=20,
        HOME=str(home),
        XDG_STATE_HOME="",
        PATH=f"{home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=sysconfig.get_paths()["purelib"],
        PIP_NO_DEPS="1",
        PIP_NO_INDEX="1",
        CLUSTER_AGENT=cluster._mark(mark),
        **env,
    )


def fill(page, **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"#id_{name}", value)


def test_a_host_joins_by_the_command_and_the_page_turns_green(admin, cluster, tmp_path):
    engine = write_wrapper(tmp_path / "an engine", "--load-seconds", "1")
    page = admin.open("/admin/join/")
    page.set_default_timeout(PATIENCE_MS)
    page.select_option("#id_engine", "python")
    fill(page, python=str(engine), loaded=MODEL, name="lab-a", note="Anna's <b>workstation</b>")
    page.check("#id_needs_approval")
    page.get_by_role("button", name="Make the command").click()
    expect(page.locator("#waiting")).to_contain_text("Waiting for the host")
    command = page.locator("#command").inner_text()
    token = page.locator("#command").inner_text().partition("GPUTORRENT_TOKEN=")[2].split()[0]

    paste(cluster, tmp_path / "home", command, "lab-a")
    expect(page.locator("#waiting")).to_contain_text("fetched the agent", timeout=PATIENCE_MS)
    node = page.locator('[data-node="lab-a"]')
    expect(node).to_contain_text("It waits for you", timeout=PATIENCE_MS)
    expect(node).not_to_have_class("node ready")
    node.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("heading", name="lab-a is ready")).to_be_visible(timeout=PATIENCE_MS)
    expect(node).to_have_class("node ready")
    expect(node).to_contain_text(f"{MODEL} answers")
    cluster.until(lambda: cluster.chat("hello").status_code == 200, "it answers", 15)

    page.reload()  # follows the same token, and makes no other
    expect(page.get_by_role("heading", name="lab-a is ready")).to_be_visible()
    assert token not in page.content()
    assert page.locator("b", has_text="workstation").count() == 0
    node.get_by_role("link", name="Try it in the playground").click()
    expect(page.locator("#model")).to_have_value(MODEL)


def test_a_host_joins_in_a_container_which_is_started_again(admin, cluster, tmp_path):
    """Docker is a stand-in: what the command does inside is real."""
    home = tmp_path / "home"
    docker = home / "bin" / "docker"
    docker.parent.mkdir(parents=True)
    docker.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_docker.__file__} "$@"\n')
    docker.chmod(0o755)
    engine = write_wrapper(tmp_path / "engine")  # the image's vLLM
    env = {"FAKE_DOCKER": str(tmp_path / "docker"), "GPUTORRENT_ENGINE_PYTHON": str(engine)}
    page = admin.open("/admin/join/")
    page.select_option("#id_engine", "container")
    fill(page, loaded=MODEL, name="lab-c")
    page.get_by_role("button", name="Make the command").click()
    command, again = page.locator("#command").inner_text(), page.locator(".again").inner_text()
    child = paste(cluster, home, command, "lab-c", **env)
    expect(page.get_by_role("heading", name="lab-c is ready")).to_be_visible(timeout=PATIENCE_MS)
    node = cluster.workers()["lab-c"]["id"]
    child.stop()
    paste(cluster, home, again, "lab-c", **env)
    cluster.until(lambda: cluster.serves("lab-c"), "it serves again", 30)
    assert cluster.workers()["lab-c"]["id"] == node


def test_what_is_missing_is_said_at_its_field(admin):
    page = admin.open("/admin/join/")
    expect(page.locator("#id_server")).to_be_hidden()
    page.select_option("#id_engine", "server")
    expect(page.locator("#id_offered")).to_be_hidden()
    fill(page, loaded="llama=llama3:8b")
    page.get_by_role("button", name="Make the command").click()
    expect(page.locator('[data-field="server"] .wrong')).to_have_text("This engine needs it.")
    admin.wrong.clear()  # the browser notes a 400 as an error of the page


def test_nothing_is_wider_than_a_phone(fresh_page, cluster):
    watched = fresh_page(viewport=PHONE)
    watched.log_in(cluster.admin_password)
    page = watched.open("/admin/join/")
    fill(page, loaded="some-organisation/a-model-with-quite-a-long-name-for-a-phone")
    page.get_by_role("button", name="Make the command").click()
    expect(page.locator("#command")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
