"""What the coordinator's tests stand on: a Redis server of their own and a database in a temporary folder.

pytest-django reads the settings before any conftest is loaded, so the Redis settings are pointed at the
server afterwards, before the first client is made. `DATABASE_URL` chooses the database as ever.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import connections

from gputorrent.embedded import RedisServer
from gputorrent.redis import Pipe, asynchronous, blocking
from tests.jobs.desk import Desk

_PORTS = range(20_000, 32_001)


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side choose their ports from ranges of their own."""
    worker = getattr(config, "workerinput", None)
    if worker:
        number, each = int(worker["workerid"].removeprefix("gw")), len(_PORTS) // worker["workercount"]
        first = _PORTS[number * each]
        os.environ["GPUTORRENT_PORTS"] = f"{first}-{first + each - 1}"


@pytest.fixture(scope="session")
def wire_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server that lives as long as the tests do."""
    with RedisServer(tmp_path_factory.mktemp("wire")) as server:
        django_settings.REDIS_URL = server.url
        for queue in django_settings.RQ_QUEUES.values():
            queue["URL"] = server.url
        blocking.cache_clear()
        yield server.url
        blocking().close()
        blocking.cache_clear()


@pytest.fixture
def wire(wire_server: str) -> redis.Redis:
    """A client with all rights; Redis holds nothing, and nobody but the default user."""
    client = blocking()
    client.flushall()
    users: Any = client.acl_users()
    for user in users:
        if user.startswith("gt-node-"):
            client.acl_deluser(user)
    return client


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SQLite in a file: threads share one in memory only with locks that no time-out applies to. On a server
    each process of the tests has a database of its own."""
    config = connections["default"].settings_dict
    if config["ENGINE"].endswith("sqlite3"):
        config["TEST"]["NAME"] = str(tmp_path_factory.mktemp("ledger") / "test.sqlite3")


@pytest.fixture
async def ledger(transactional_db: None) -> AsyncIterator[None]:
    """The database for tests that run in an event loop, whose code reaches it from other threads."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def pipe(wire: redis.Redis) -> AsyncIterator[Pipe]:
    client = asynchronous()
    yield Pipe(client)
    await client.aclose()


@pytest.fixture
async def desk(ledger: None, wire: redis.Redis, settings: Any) -> AsyncIterator[Desk]:
    """Nothing is recorded and nothing is looked at unless the test asks for it."""
    settings.RECORD_SECONDS = 3600
    desk = Desk()
    await desk.dispatcher.start()
    yield desk
    await desk.dispatcher.stop()


@pytest.fixture
def quick(settings: Any) -> None:
    """What every test client would pay for anew: a search for static files, and slow password hashes."""
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "servestatic" not in name]
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
