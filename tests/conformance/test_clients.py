"""Each client goes through its cases against one cluster; a test for each case of each client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import environments, world
from tests.conformance.expected import CLIENTS
from tests.conformance.running import Seen, saw, tried
from tests.journeys.cluster import Cluster

PROGRAM = {
    "openai2": "openai_python.py",
    "openai3": "openai_python.py",
    environments.NODE: "client.mjs",
    "langchain": "langchain_client.py",
    "litellm": "litellm_client.py",
}


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("conformance")
    with Cluster(folder) as cluster:
        world.furnish(cluster)
        yield cluster


@pytest.fixture(scope="session")
def seen(running: Cluster, request: pytest.FixtureRequest) -> Seen:
    """What every client that can be run here has seen; all of them run at the same time."""
    items: list[Any] = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = {item.callspec.params["client"] for item in items if hasattr(item, "callspec")}
    names = [name for name in CLIENTS if name in chosen and not environments.missing(name)]
    plans = {name: world.plan(running, name) for name in names}

    with ThreadPoolExecutor(len(names) or 1) as pool:
        logs = [running.folder / f"{name}.log" for name in names]
        found = pool.map(tried, names, [PROGRAM[name] for name in names], plans.values(), logs)
        return dict(zip(names, found, strict=True))


@pytest.mark.parametrize(
    ("client", "case"), [(client, case) for client, cases in CLIENTS.items() for case in cases]
)
def test_a_client_sees_what_its_users_expect(client, case, needs, request):
    needs(client)
    found = saw(request.getfixturevalue("seen"), client, case)
    if case == "disconnect":
        running = request.getfixturevalue("running")
        assert running.job_ended(found.pop("job"))["status"] == "cancelled"
    assert found == CLIENTS[client][case]


def test_whoever_left_or_gave_up_holds_no_slot(request):
    """After all of them: streams that were left, requests that timed out, and those that were refused."""
    if all(environments.missing(name) for name in CLIENTS):
        pytest.skip("no client can be run here")
    request.getfixturevalue("seen")
    running = request.getfixturevalue("running")
    running.until(lambda: running.slots_held() == 0, "no slot is held", 15)
    left = [
        job["id"]
        for state in ("pending", "running")
        for job in running.get(f"/jobs?state={state}").json()["data"]
    ]
    assert not left
