"""Pictures of the pages for the documentation: ``python -m tests.browser.screenshots``.

Starts a cluster of a few hosts with GPUs that are not there and engines that only pretend, gives it work
for a minute, and writes each page as <page>-light.png, -dark.png and -phone.png to docs/img. Also a way to
look at all pages at once after a change of their looks.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
from playwright.sync_api import Browser, Page

from tests import fake_nvml
from tests.browser import chromium, site
from tests.browser.chromium import PHONE
from tests.journeys.cluster import FAST, ROOT, Cluster

WIDE = {"width": 1280, "height": 1000}
LARGEST = 250_000
"""Bytes of a picture."""
QWEN, LLAMA, EMBEDDER, CODER = (
    "Qwen/Qwen3-8B",
    "meta-llama/Llama-3.1-8B",
    "BAAI/bge-m3",
    "Qwen/Qwen3-Coder-30B",
)
SAYS = (
    "A GPU that idles at night can serve the colleague who works then. Pool the cards of a team, and each"
    " request goes to whichever host has the model loaded, a free slot and the shortest wait. Nobody has to"
    " ask whose turn it is, and nobody has to remember an address."
)
QUESTION = "Why should a team pool its GPUs? Answer in three sentences."


class Host(NamedTuple):
    name: str
    gpus: str
    model: str
    per_second: int
    more: tuple[str, ...] = ()


HOSTS = (
    Host("lab-a", "NVIDIA GeForce RTX 4090:24, NVIDIA GeForce RTX 4090:24", QWEN, 40, ("--offer", CODER)),
    Host("lab-b", "NVIDIA L40S:48", QWEN, 30),
    Host("anna-workstation", "NVIDIA GeForce RTX 3090:24", LLAMA, 20),
    Host("rack-2", ", ".join(["NVIDIA H100 80GB HBM3:80"] * 4), CODER, 60, ("--model", EMBEDDER)),
)
KEYS = ("search-team", "notebooks", "nightly-reports")


def start(cluster: Cluster) -> None:
    """The hosts, all serving; one of them drained."""
    for host in HOSTS:
        fake_nvml.give(cluster, host.gpus)
        needs = [word for name in {host.model, *host.more[1::2]} for word in ("--need", f"{name}=12GiB")]
        knobs = ("--per-second", str(host.per_second), "--first-seconds", "0.15", "--says", SAYS)
        cluster.start_agent(host.name, *knobs, model=host.model, arguments=(*host.more, *needs))
    for host in HOSTS:
        cluster.until(partial(cluster.serves, host.name, host.model), f"{host.name} serves", 60)


@contextmanager
def at_work(cluster: Cluster) -> Iterator[None]:
    """Teams ask this and that, until the block is left."""
    over = threading.Event()
    made = [cluster.manage("apikey", "create", "--name", name, "--json") for name in KEYS]
    keys = [json.loads(told)["api_key"] for told in made]
    askers = [threading.Thread(target=_ask, args=(cluster, key, over)) for key in keys * 3]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        over.set()
        for asker in askers:
            asker.join(60)


def _ask(cluster: Cluster, key: str, over: threading.Event) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=60) as client:
        while not over.wait(random.uniform(0, 0.6)):
            model = random.choice((QWEN, QWEN, LLAMA, CODER))
            words = " ".join(["word"] * random.randint(20, 400))
            body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": True}
            client.post("/v1/chat/completions", json={**body, "max_tokens": random.randint(20, 200)})


def disguise(page: Page) -> None:
    """What machine the pictures were made on is of no interest."""
    named = {platform.platform(): "Linux-6.12.57-amd64", socket.gethostname(): "lab"}
    page.evaluate(
        """named => {
          const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (texts.nextNode()) {
            const text = texts.currentNode, instead = named[text.data.trim()];
            if (instead) text.data = instead;
            else if (text.data.includes(": vm, ")) text.data = text.data.replace(": vm, ", ": lab, ");
          }
        }""",
        named,
    )


def first_row(page: Page) -> None:
    page.locator("#result_list tbody a[href*='/change/']").first.click()
    page.wait_for_load_state()


def last_minutes(page: Page) -> None:
    page.check("input[name=range][value='5m']", force=True)


def to_the_nodes(page: Page) -> None:
    page.locator("#gt-nodes article").first.wait_for()
    page.locator("section", has=page.locator("#gt-nodes")).evaluate("e => e.scrollIntoView()")


def ask_to_drain(page: Page) -> None:
    first_row(page)
    page.goto(page.url.replace("/change/", "/step/drain/"))


def until_ready(page: Page) -> None:
    page.get_by_role("heading", name="is ready").last.wait_for()


def ask(page: Page) -> None:
    page.locator("#model option").first.wait_for(state="attached")
    page.select_option("#model", QWEN)
    page.fill("#prompt", QUESTION)
    page.click("#send")
    page.get_by_text("Done: ").wait_for()


def fill_in(page: Page) -> None:
    page.fill("#id_loaded", QWEN)
    page.fill("#id_note", "Anna's workstation")
    page.fill("#id_address", "https://gpu.example.com")
    page.get_by_role("button", name="Make the command").click()
    page.locator("#command").wait_for()


def nothing(page: Page) -> None:
    pass


PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "login": (site.LOGIN, nothing),
    "dashboard": (site.ADMIN, last_minutes),
    "cards": (site.ADMIN, to_the_nodes),
    "playground": ("/admin/playground/", ask),
    "join": ("/admin/join/", fill_in),
    "joined": ("/admin/join/1/", until_ready),
    "nodes": ("/admin/nodes/node/", nothing),
    "node": ("/admin/nodes/node/", first_row),
    "confirm": ("/admin/nodes/node/", ask_to_drain),
    "models": ("/admin/nodes/nodemodel/", nothing),
    "gpus": ("/admin/nodes/gpu/", nothing),
    "events": ("/admin/nodes/nodeevent/", nothing),
    "tokens": ("/admin/nodes/enrolmenttoken/", nothing),
    "jobs": ("/admin/jobs/job/", nothing),
    "job": ("/admin/jobs/job/?state__exact=completed", first_row),
    "keys": ("/admin/api/apikey/", nothing),
    "usage": ("/admin/api/usage/", nothing),
    "queues": ("/admin/django-rq/", nothing),
}
LOOKS = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
}


def take(browser: Browser, cluster: Cluster, folder: Path, wanted: list[str]) -> list[str]:
    """Every page in every look. Returns what went wrong in them."""
    wrong = []
    with site.client(cluster) as session:
        for look, options in LOOKS.items():
            context = browser.new_context(**options)  # type: ignore[arg-type]
            watched = chromium.Watched(context.new_page(), cluster.url)
            for name, (path, then) in PAGES.items():
                if wanted and name not in wanted:
                    continue
                context.clear_cookies()
                if name != "login":
                    context.add_cookies(site.cookies(session))
                page = watched.open(path)
                then(page)
                page.wait_for_timeout(1500)  # fonts, and what moves at first
                disguise(page)
                shot = page.screenshot(path=folder / f"{name}-{look}.png")
                if len(shot) > LARGEST:
                    wrong.append(f"{name}-{look}.png has {len(shot):,} bytes")
            wrong += [f"{look}: {what}" for what in watched.wrong]
            context.close()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "img")
    parser.add_argument("--seconds", type=float, default=60, help="how long the cluster works before")
    parser.add_argument("--page", action="append", default=[], choices=PAGES, help="only this one (repeat)")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if not chromium.find():
        sys.exit("no Chromium here: apt install chromium, or CHROMIUM=path")
    slow = {**FAST, "GPUTORRENT_TOTAL_SECONDS": "600", "GPUTORRENT_UNHEALTHY_AFTER_SECONDS": "60"}
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), **slow) as cluster:
        start(cluster)
        with at_work(cluster), chromium.started() as browser:
            time.sleep(chosen.seconds)
            wrong = take(browser, cluster, chosen.folder, chosen.page)
    print("\n".join(wrong) or f"wrote {chosen.folder}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
