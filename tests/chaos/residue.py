"""What must be gone once nothing runs any more: in Redis, in PostgreSQL, in the agents and their engines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import psycopg
import redis

from tests.chaos.world import SLOTS, World
from tests.journeys.cluster import MODEL

_POOL = 8
"""Connections that each thread pool of a process may keep open (`settings.DATABASES`)."""
_WORKER_CONNECTIONS = 8
_SECONDS = 65
"""A reply stream whose web process died expires by then."""

MORE_CLIENTS = 10
"""Pools keep what they once needed at a time; a leak would be one for each of hundreds of jobs."""

BOARD = ("slots:", "places", "bytes", "queue:", "turns:", "waiting", "wait:")
RQ = {"rq:queue:": "queued", "rq:wip:": "started", "rq:scheduled:": "scheduled", "rq:deferred:": "deferred"}


Clients = Counter[str]


def clients(world: World) -> Clients:
    """Connections to Redis by the user or name of the client."""
    with _redis(world) as wire:
        listed: Any = wire.client_list()
    return Counter(c["name"] or c["user"] for c in listed)


def look(world: World, clients_before: Clients) -> dict[str, list[str]]:
    """Everything that is still there, by the check it belongs to; an empty list where nothing is."""
    found: dict[str, list[str]] = {
        "slots and queues are empty": [],
        "board keys are gone": [],
        "streams are empty": [],
        "tasks are done": [],
        "connections are as before": [],
        "engines do nothing": [],
        "every node serves": [],
    }
    try:
        status = world.cluster.get("/cluster/status").json()
        workers = world.cluster.workers()
    except (httpx.HTTPError, ValueError, KeyError) as e:
        found["every node serves"].append(f"/cluster/status: {type(e).__name__}")
        return found
    held = sum(m["in_flight"] for m in status["models"])
    if held or status["waiting"]:
        found["slots and queues are empty"].append(f"{held} slots held, {status['waiting']} waiting")
    for name in world.agents:
        worker = workers.get(name, {})
        ready = [m for m in worker.get("models", []) if m["name"] == MODEL and m["state"] == "ready"]
        if worker.get("state") != "online" or not ready or ready[0]["slots"] != SLOTS:
            found["every node serves"].append(f"{name}: {worker.get('state')}, {len(ready)} models ready")
        if worker.get("in_flight"):
            found["engines do nothing"].append(f"{name} reports {worker['in_flight']} attempts")
        found["engines do nothing"] += _engine(world, name)
    with _redis(world) as wire:
        _board_and_streams(wire, found)
    found["connections are as before"] += _connections(world, clients_before)
    return found


def _redis(world: World) -> redis.Redis:
    return redis.Redis.from_url(world.cluster.redis.url, socket_timeout=5, client_name="chaos")


def _engine(world: World, name: str) -> list[str]:
    processes = world.engine_processes(name)
    if not processes:
        return [f"{name} has no engine"]
    line = processes[0].cmdline()
    port = int(line[line.index("--port") + 1])
    try:
        stats = httpx.get(f"http://127.0.0.1:{port}/fake/stats", timeout=5).json()
    except httpx.HTTPError as e:
        return [f"the engine of {name}: {type(e).__name__}"]
    work = stats["running"] + stats["waiting"]
    return [f"the engine of {name} has {work} requests"] if work else []


def _board_and_streams(wire: redis.Redis, found: dict[str, list[str]]) -> None:
    webs = {key.decode().removeprefix("gt:web:") for key in wire.scan_iter("gt:web:*")}
    for key in sorted(k.decode() for k in wire.scan_iter("*", count=1000)):
        if key.startswith("gt:board:") and key.removeprefix("gt:board:").startswith(BOARD):
            found["board keys are gone"].append(key)
        elif key.startswith("gt:reply:") and key.removeprefix("gt:reply:") not in webs:
            if not 0 < int(wire.ttl(key)) <= _SECONDS:
                found["streams are empty"].append(f"{key} of a dead web process does not expire")
        elif _is_stream(key) and (length := wire.xlen(key)):
            found["streams are empty"].append(f"{key} has {length} entries")
        for prefix, state in RQ.items():
            if key.startswith(prefix):
                count = wire.llen(key) if state == "queued" else _tasks(wire, key, state)
                # A sweep may be under way at any moment; more than that have piled up.
                if count and (key.endswith(":routing") or int(count) > 2):
                    found["tasks are done"].append(f"{key}: {count} {state}")


def _tasks(wire: redis.Redis, key: str, state: str) -> int:
    """How many are listed there; what a killed worker had begun stays so until RQ tidies."""
    listed: Any = wire.zrange(key, 0, -1)
    if state != "started":
        return len(listed)
    workers = [wire.hget(f"rq:job:{name.decode().partition(':')[0]}", "worker_name") for name in listed]
    return sum(bool(w and wire.exists(f"gt:jobworker:{w.decode()}")) for w in workers)  # type: ignore[union-attr]


def _is_stream(key: str) -> bool:
    return key.startswith("gt:reply:") or key.endswith((":inbox", ":control"))


def _connections(world: World, before: Clients) -> list[str]:
    wrong = []
    for name, count in (clients(world) - before).items():
        if name != "chaos" and count > MORE_CLIENTS:
            wrong.append(f"Redis has {count} more connections of {name} than at the start")
    with psycopg.connect(world.database.url, autocommit=True) as ledger:
        rows = ledger.execute(
            "SELECT state, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() GROUP BY state"
        ).fetchall()
    most = _POOL * len(world.webs) + _WORKER_CONNECTIONS
    if sum(count for _, count in rows) > most:
        wrong.append(f"PostgreSQL has {dict(rows)} connections, more than {most}")
    open_ = {state: count for state, count in rows if state not in {"idle", "active"}}
    if open_:
        wrong.append(f"PostgreSQL has {open_}")
    return wrong
