"""``/readyz`` is honest, and quick about it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psycopg
import pytest
from django.db import connection


async def ready(client):
    began = time.monotonic()
    answer = await client.get("/readyz")
    assert time.monotonic() - began < 5, "a probe would have given up"
    return answer.status_code, answer.json()


async def recovered(client):
    async with asyncio.timeout(15):
        status = 0
        while status != 200:
            status, _ = await ready(client)


async def test_a_frozen_redis_is_named_and_its_return_seen(serve, wire):
    client = await serve()
    assert await ready(client) == (200, {"status": "ok", "redis": "ok", "database": "ok"})
    pid = int(wire.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        status, told = await ready(client)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (status, told["status"], told["database"]) == (503, "unavailable", "ok")
    assert told["redis"] != "ok"
    await recovered(client)


async def test_a_database_that_hangs_is_named_and_does_not_use_up_threads(serve):
    if connection.vendor != "postgresql":
        pytest.skip("readers of SQLite never wait")
    client = await serve()
    assert (await ready(client))[0] == 200
    blocking = psycopg.connect(**connection.get_connection_params(), autocommit=False)
    blocking.execute("LOCK TABLE nodes_node IN ACCESS EXCLUSIVE MODE")
    try:
        assert await named(client)
        before = threads()
        for _ in range(3):
            assert await named(client)
        assert threads() < before + 3  # others come and go
        assert (await client.get("/healthz")).status_code == 200
    finally:
        blocking.close()
    await recovered(client)


async def named(client):
    status, told = await ready(client)
    return (status, told["redis"], told["database"]) == (503, "ok", "TimeoutError")


def threads():
    return len(os.listdir("/proc/self/task"))
