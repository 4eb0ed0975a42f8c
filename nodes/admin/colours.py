"""The colours of states. Each state is written out as well."""

from __future__ import annotations

from typing import Final

from nodes.models import NodeState
from worker_agent.contract import ModelState

NODE_COLOURS: Final[dict[str, str]] = {
    NodeState.PENDING: "info",
    NodeState.ONLINE: "success",
    NodeState.DRAINING: "warning",
    NodeState.UNHEALTHY: "danger",
    NodeState.REVOKED: "danger",
}
MODEL_COLOURS: Final[dict[str, str]] = {
    ModelState.READY: "success",
    ModelState.LOADING: "info",
    ModelState.FAILED: "danger",
}
