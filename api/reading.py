"""What the API says of the state of things, as plain objects. Times are seconds since the epoch."""

from __future__ import annotations

import asyncio
import datetime
import re
from typing import Any

import msgspec
import redis
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connection
from django.db.models import Count, Sum
from django.utils import timezone

from api.authentication import Caller
from jobs.dispatch import Dispatcher
from jobs.models import TERMINAL, Job, JobState
from nodes.models import Node, NodeState
from worker_agent.contract import ModelState

_JOB_ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})")


def models(dispatcher: Dispatcher, caller: Caller) -> list[dict[str, Any]]:
    """Models that the caller may use and at least one live node has ready (of those that may see its
    prompts), in OpenAI's shape, with what their nodes allow."""
    found = []
    for name in sorted(dispatcher.snapshot.by_model):
        if not caller.may_use(name):
            continue
        offered = dispatcher.candidates(name, caller.nodes)
        ready = [c for c in offered if c.takes_work and c.state == ModelState.READY]
        if not ready:
            continue
        since = min(
            node.updated_at
            for node, _ in dispatcher.snapshot.by_model[name]
            if node.id in {c.node for c in ready}
        )
        found.append(
            {
                "id": name,
                "object": "model",
                "created": int(since),
                "owned_by": "gputorrent",
                "max_model_len": max(c.max_model_len for c in ready) or None,
                "nodes": len(ready),
            }
        )
    return found


def job(job_id: str, *, key: int | None) -> dict[str, Any] | None:
    """One job with its attempts; only if it belongs to `key`, unless that is None (staff)."""
    found = _JOB_ID.fullmatch(job_id)
    if not found:
        return None
    rows = Job.objects.filter(pk=found[1]).prefetch_related("attempts__node")
    row = (rows if key is None else rows.filter(key_id=key)).first()
    if row is None:
        return None
    answer: dict[str, Any] = {
        "id": row.id,
        "object": "job",
        "status": row.state,
        "model": row.model,
        "url": row.path,
        "stream": row.stream,
        "asynchronous": row.asynchronous,
        "created": _seconds(row.created_at),
        "placed": _seconds(row.placed_at),
        "first_token": _seconds(row.first_token_at),
        "finished": _seconds(row.finished_at),
        "why": row.why or None,
        "attempts": [
            {
                "number": a.number,
                "node": a.node.name if a.node else None,
                "outcome": a.outcome or None,
                "reason": a.reason or None,
                "claimed": _seconds(a.claimed_at),
                "placed": _seconds(a.placed_at),
                "finished": _seconds(a.finished_at),
            }
            for a in row.attempts.all()
        ],
        "usage": None,
        "error": None,
    }
    if row.state == JobState.COMPLETED:
        answer["usage"] = {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        }
    if row.error_code:
        answer["error"] = {"code": row.error_code, "message": row.error_message}
    if row.asynchronous:
        answer["result"] = msgspec.json.decode(bytes(row.result)) if row.result else None
    return answer


def workers() -> list[dict[str, Any]]:
    """Every node that was not revoked."""
    nodes = Node.objects.exclude(state=NodeState.REVOKED).prefetch_related("gpus", "models")
    return [_worker(node) for node in nodes]


def _worker(node: Node) -> dict[str, Any]:
    return {
        "id": node.pk,
        "object": "worker",
        "name": node.name,
        "state": node.state,
        "state_reason": node.state_reason,
        "last_heartbeat": _seconds(node.last_beat_at),
        "agent_version": node.agent_version,
        "incarnation": node.incarnation,
        "labels": node.labels,
        "in_flight": node.in_flight,
        "memory_budget": node.memory_budget,
        "memory_used": node.memory_used,
        "host": {
            "hostname": node.hostname,
            "os": node.os,
            "arch": node.arch,
            "cpu": node.cpu,
            "cpu_count": node.cpu_count,
            "cpu_usage": node.cpu_usage,
            "ram_total": node.ram_total,
            "ram_free": node.ram_free,
            "disk_free": node.disk_free,
        },
        "gpus": [
            {
                "index": g.index,
                "uuid": g.uuid,
                "name": g.name,
                "vram_total": g.vram_total,
                "vram_free": g.vram_free,
                "driver": g.driver,
                "utilisation": g.utilisation,
                "temperature_c": g.temperature_c,
                "power_w": g.power_w,
            }
            for g in node.gpus.all()
        ],
        "models": [
            {
                "name": m.name,
                "state": m.state,
                "reason": m.reason or None,
                "progress": m.progress,
                "engine": m.engine,
                "slots": m.slots,
                "max_model_len": m.max_model_len or None,
                "need": m.need or None,
                "need_measured": m.need_measured,
                "idle_seconds": m.idle_seconds,
                "retry_seconds": m.retry_seconds or None,
                "fits": m.fits,
                "pinned": m.pinned,
                "running": m.running,
                "waiting": m.waiting,
                "kv_cache_usage": m.kv_cache_usage,
                "tokens_per_s": m.tokens_per_s,
                "ttft_ms": m.ttft_ms,
            }
            for m in node.models.all()
        ],
    }


async def cluster(dispatcher: Dispatcher) -> dict[str, Any]:
    """Nodes by state, models with slots and queues, jobs by state."""
    snapshot = dispatcher.snapshot
    names = sorted(snapshot.by_model)
    (waiting, depths), loads, ledger = await asyncio.gather(
        dispatcher.board.depths(names), dispatcher.board.loads(), sync_to_async(_ledger)()
    )
    each = []
    for name in names:
        ready = [c for c in dispatcher.candidates(name) if c.takes_work and c.state == ModelState.READY]
        each.append(
            {
                "id": name,
                "nodes_ready": len(ready),
                "nodes": len(snapshot.by_model[name]),
                "slots": sum(c.slots for c in ready),
                "in_flight": sum(loads.get(f"{node.id}/{name}", 0) for node, _ in snapshot.by_model[name]),
                "waiting": depths[name],
            }
        )
    return {"object": "cluster", "models": each, "waiting": waiting, **ledger}


def _ledger() -> dict[str, Any]:
    nodes = dict.fromkeys(NodeState.values, 0)
    nodes.update(Node.objects.values_list("state").annotate(n=Count("pk")).order_by())
    open_jobs = {s.value: 0 for s in JobState if s not in TERMINAL}
    open_jobs.update(
        Job.objects.filter(state__in=list(open_jobs)).values_list("state").annotate(n=Count("pk")).order_by()
    )
    since = timezone.now() - datetime.timedelta(minutes=5)
    recent = Job.objects.filter(finished_at__gte=since)
    last = dict.fromkeys(sorted(s.value for s in TERMINAL), 0)
    last.update(recent.values_list("state").annotate(n=Count("pk")).order_by())
    tokens = recent.aggregate(n=Sum("completion_tokens"))["n"] or 0
    return {
        "nodes": nodes,
        "jobs": open_jobs,
        "last_5_minutes": {**last, "completion_tokens": tokens, "tokens_per_s": round(tokens / 300, 1)},
    }


async def readiness(dispatcher: Dispatcher) -> dict[str, str]:
    """'ok', or what is wrong, for Redis and the database. Each is given 2 s."""

    async def broker() -> str:
        try:
            await dispatcher.pipe.send("PING")
        except redis.RedisError as e:
            return type(e).__name__
        return "ok"

    async def database() -> str:
        try:
            async with asyncio.timeout(2):
                await asyncio.to_thread(_select_one)
        except (DatabaseError, InterfaceError, TimeoutError) as e:
            return type(e).__name__
        return "ok"

    redis_state, database_state = await asyncio.gather(broker(), database())
    return {"redis": redis_state, "database": database_state}


def _select_one() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


def _seconds(moment: datetime.datetime | None) -> float | None:
    return round(moment.timestamp(), 3) if moment else None
