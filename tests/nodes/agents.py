"""Agents as the coordinator sees them: what they say, in the contract's words."""

from __future__ import annotations

import secrets
from typing import Any

import redis

from nodes import registry
from nodes.models import Node
from worker_agent.contract import (
    PROTOCOL,
    Control,
    Gpu,
    GpuLoad,
    Heartbeat,
    Host,
    ModelReport,
    ModelState,
    Register,
    Registered,
    control_key,
    decode_control,
)

GIB = 1 << 30
HERE = "coordinator.lan"


def gpu(index: int = 0, **changes: Any) -> Gpu:
    fields: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "RTX 4090",
        "vram_total": 24 * GIB,
        "vram_free": 20 * GIB,
    }
    return Gpu(**{**fields, **changes})


def host(**changes: Any) -> Host:
    fields: dict[str, Any] = {
        "hostname": "box",
        "os": "Linux 6.8",
        "arch": "x86_64",
        "cpu": "some CPU",
        "cpu_count": 8,
        "ram_total": 64 * GIB,
        "ram_free": 32 * GIB,
        "disk_free": 100 * GIB,
    }
    return Host(**{**fields, **changes})


def model(name: str = "m", state: ModelState = ModelState.READY, slots: int = 4, **more: Any) -> ModelReport:
    return ModelReport(name, state, slots, **more)


def registration(**changes: Any) -> Register:
    """A first registration with one GPU and model `m`, unless said otherwise."""
    fields: dict[str, Any] = {
        "protocol": PROTOCOL,
        "agent_version": "0.1.0",
        "name": "box",
        "machine": "machine-1",
        "instance": secrets.token_hex(8),
        "host": host(),
        "gpus": [gpu()],
        "models": [model()],
    }
    return Register(**{**fields, **changes})


def enrol(**changes: Any) -> tuple[Node, Registered]:
    """A node that has just enrolled with a token of its own."""
    needs_approval = changes.pop("needs_approval", False)
    _, token = registry.new_token(needs_approval=needs_approval)
    answer = registry.register(registration(token=token, **changes), HERE)
    return Node.objects.get(pk=answer.node), answer


def restart(answer: Registered, **changes: Any) -> Registered:
    """The agent of a known node starts again."""
    return registry.register(registration(node=answer.node, secret=answer.secret, **changes), HERE)


def heartbeat(incarnation: int = 1, **changes: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "incarnation": incarnation,
        "draining": False,
        "models": [model()],
        "gpus": [GpuLoad(index=0, vram_free=5 * GIB, utilisation=0.5)],
        "ram_free": 16 * GIB,
        "disk_free": 50 * GIB,
        "cpu_usage": 0.25,
        "attempts": [],
    }
    return Heartbeat(**{**fields, **changes})


def controls(wire: redis.Redis, node: Node) -> list[Control]:
    """What a node was told beside its work, so far; it stays there."""
    entries: Any = wire.xrange(control_key(node.pk))
    return [decode_control(fields[b"m"]) for _, fields in entries]
