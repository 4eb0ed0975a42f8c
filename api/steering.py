"""What staff can do to nodes over the API: `nodes.steering`, with refusals in the API's shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from api.errors import ApiError
from nodes import steering
from nodes.registry import Refusal
from worker_agent.contract import ModelName


class ModelBody(Struct, forbid_unknown_fields=True):
    model: ModelName


def steer(node: str, verb: str, by: str) -> dict[str, Any]:
    """Approve, drain, resume or revoke. `changed` is False where there was nothing to do."""
    with _refusing():
        found = steering.find(node)
        changed = steering.NODE_VERBS[verb](found, by)
    return {"id": found.pk, "name": found.name, "state": found.state, "changed": changed}


def steer_model(node: str, verb: str, model: str, by: str) -> dict[str, Any]:
    """Ask a node to load, unload, pin or unpin a model; it does so in its own time."""
    with _refusing():
        found = steering.find(node)
        steering.MODEL_VERBS[verb](found, model, by)
    return {"id": found.pk, "name": found.name, "model": model, "asked": verb}


@contextmanager
def _refusing() -> Iterator[None]:
    """Raises `ApiError` for a refusal of the registry."""
    try:
        yield
    except Refusal as e:
        raise ApiError(e.code, e.message) from None
