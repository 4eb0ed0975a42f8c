"""One cluster for the journeys that leave it as they found it; those that break things make their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.journeys.cluster import Cluster
from tests.postgres import new_database


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A coordinator and one agent, `one`, with a fast engine."""
    with Cluster(tmp_path_factory.mktemp("cluster"), journey_database()) as running:
        running.agent_ready("one")
        yield running


@pytest.fixture
def bare(tmp_path) -> Iterator[Cluster]:
    """A coordinator without agents, for one test."""
    with Cluster(tmp_path, journey_database()) as running:
        yield running


def journey_database() -> str:
    """SQLite of the cluster's own, or a new database on the PostgreSQL that JOURNEY_DATABASE_URL reaches."""
    url = os.environ.get("JOURNEY_DATABASE_URL", "")
    return new_database(url) if url else ""
