"""What the API says of the state of things, as plain objects. Times are seconds since the epoch."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

from django.db.models import Count, Sum
from django.utils import timezone

from api import rates
from api.authentication import Caller
from gputorrent import ledger
from jobs import heals
from jobs.dispatch import Dispatcher
from jobs.models import TERMINAL, Job, JobState
from nodes.models import Node, NodeState
from worker_agent.contract import ModelState


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
    """Nodes by state, models with slots and queues, circuit breakers that are not closed, jobs by state."""
    snapshot = dispatcher.snapshot
    names = sorted(snapshot.by_model)
    (waiting, depths), seen, healed, recorded = await asyncio.gather(
        dispatcher.board.depths(names),
        dispatcher.board.look(),
        heals.read(dispatcher.pipe),
        ledger.ask(_ledger),
    )
    loads, recent = seen.loads, await rates.read(dispatcher.pipe)
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
                "rates": recent.of(name),
            }
        )
    breakers = [
        {
            "node": b.node,
            "name": snapshot.nodes[b.node].name if b.node in snapshot.nodes else None,
            "model": b.model,
            "state": b.state,
            "faults": b.faults,
            "probe_at": round(b.until, 3),
        }
        for b in seen.breakers.values()
    ]
    state = {"waiting": waiting, "breakers": breakers, "heals": healed, "rates": recent.of()}
    return {"object": "cluster", "models": each, **state, **recorded}


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


def _seconds(moment: datetime.datetime | None) -> float | None:
    return round(moment.timestamp(), 3) if moment else None
