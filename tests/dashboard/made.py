"""Nodes, models and figures for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from dashboard.state import GpuLine, ModelFigures, ModelLine, NodeCard, Shown


def gpu(**changes: Any) -> GpuLine:
    fields = {
        "index": 0,
        "name": "RTX 4090",
        "utilisation": 50,
        "used": 2**33,
        "total": 2**34,
        "temperature": 60,
    }
    return GpuLine(**{**fields, **changes})


def line(**changes: Any) -> ModelLine:
    fields = {"name": "m", "state": "ready", "progress": 0, "slots": 4, "in_flight": 0, "reason": ""}
    return ModelLine(**{**fields, **changes})


def node(name: str = "lab-a", **changes: Any) -> NodeCard:
    fields: dict[str, Any] = {
        "id": name.encode().hex()[:16].ljust(16, "0"),
        "name": name,
        "state": Shown.ONLINE,
        "reason": "",
        "gpus": [],
        "models": [],
        "in_flight": 0,
        "cpu": 10,
        "memory_used": 0,
        "memory_budget": 2**34,
        "disk_free": 0,
        "beat_at": 1000.0,
    }
    return NodeCard(**{**fields, **changes})


def model(**changes: Any) -> ModelFigures:
    fields = {"name": "m", "nodes_ready": 1, "nodes": 1, "slots": 4, "in_flight": 0, "waiting": 0}
    return ModelFigures(**{**fields, **changes})
