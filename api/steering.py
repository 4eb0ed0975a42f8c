"""What staff can do to nodes over the API: the registry's verbs, by node id or name."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from api.errors import ApiError, invalid
from nodes import registry
from nodes.models import Node
from worker_agent.contract import ModelName

NODE_VERBS = {
    "approve": registry.approve,
    "drain": registry.drain,
    "resume": registry.resume,
    "revoke": registry.revoke,
}


class ModelBody(Struct, forbid_unknown_fields=True):
    model: ModelName


def find(node: str) -> Node:
    """A node by id or by name. Raises `ApiError` 404."""
    found = Node.objects.filter(pk=node).first() or Node.objects.filter(name=node).first()
    if found is None:
        raise invalid(f"No such node: {node[:80]}", code="node_not_found", status=404)
    return found


def steer(node: str, verb: str, by: str) -> dict[str, Any]:
    """Approve, drain, resume or revoke. `changed` is False where there was nothing to do."""
    found = find(node)
    changed = NODE_VERBS[verb](found, by)
    found.refresh_from_db(fields=["state", "state_reason"])
    return {"id": found.pk, "name": found.name, "state": found.state, "changed": changed}


def steer_model(node: str, verb: str, model: str, by: str) -> dict[str, Any]:
    """Ask a node to load, unload, pin or unpin a model; it does so in its own time."""
    found = find(node)
    try:
        if verb == "load":
            registry.load(found, model, by)
        elif verb == "unload":
            registry.unload(found, model, by)
        else:
            registry.pin(found, model, by, pinned=verb == "pin")
    except registry.Refusal as e:
        raise ApiError(e.status, "invalid_request_error", e.code, e.message) from None
    return {"id": found.pk, "name": found.name, "model": model, "asked": verb}
