"""A request that kills every engine it touches, among four real agents."""

from __future__ import annotations

import contextlib

import httpx

from tests.journeys.cluster import Cluster
from tests.journeys.conftest import journey_database

NAMES = ("one", "two", "three", "four")
PATIENT = {"GPUTORRENT_LEASE_SECONDS": "6", "GPUTORRENT_UNHEALTHY_AFTER_SECONDS": "30"}


def pids(ports: list[int]) -> set[int]:
    """The processes of the engines that still answer on these ports."""
    found = set()
    for port in ports:
        with contextlib.suppress(httpx.HTTPError):
            found.add(httpx.get(f"http://127.0.0.1:{port}/fake/stats", timeout=10).json()["pid"])
    return found


def test_it_ends_after_three_engines_and_the_fourth_lives(tmp_path):
    with Cluster(tmp_path, journey_database(), **PATIENT) as cluster:
        for name in NAMES:
            cluster.start_agent(name, "--die-on-word", "arsenic")
        cluster.until(lambda: all(map(cluster.serves, NAMES)), "all serve", 120)
        ports = [cluster.engine_port(name) for name in NAMES]
        before = pids(ports)
        answer = cluster.chat("arsenic", max_tokens=4)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert len(pids(ports) & before) == 1
        again = cluster.chat("arsenic", max_tokens=4)
        assert (again.status_code, again.json()["error"]["code"]) == (422, "request_held_off")
        assert again.headers["x-should-retry"] == "false"
        assert len(pids(ports) & before) == 1
        assert cluster.chat("water", max_tokens=4).status_code == 200
        cluster.until(lambda: cluster.slots_held() == 0, "no slot is held", 10)
