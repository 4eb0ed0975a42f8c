"""How far a host is that was told to join, step by step, in words: from what the ledger and Redis have of it.

Nothing here decides anything; `nodes.registry` does.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from django.conf import settings
from django.utils import timezone
from msgspec import Struct

from gputorrent.redis import blocking
from nodes.models import EnrolmentToken, Node, NodeModel, NodeState
from worker_agent.contract import ModelState, lease_key

_KEPT_SECONDS: Final = 86400
MOST_NODES: Final = 50

DONE, NOW, WAITING, FAILED = "done", "now", "waiting", "failed"


class Step(Struct, frozen=True):
    """`state` is done, now, waiting or failed; `progress` lies between 0 and 1 where it is measured."""

    name: str
    state: str
    words: str
    progress: float | None = None


# -- pure ------------------------------------------------------------------------------------------------


def steps(
    node: Node, models: Sequence[NodeModel], connected: bool | None, silent: bool = False
) -> list[Step]:
    """From its registration to its first model that answers. `connected`: its lease is alive in Redis; None:
    nobody knows. `silent`: no heartbeat has come for too long."""
    gpus = node.gpus_in_words() or "no GPU"
    found = [Step("Registered", DONE, f"{node.name}: {node.hostname}, {gpus}")]
    if node.state == NodeState.REVOKED:
        return [*found, Step("Approved", FAILED, f"This node was revoked: {node.state_reason}")]
    if node.state == NodeState.PENDING:
        found.append(Step("Approved", NOW, "It waits for you: approve it, and it gets work."))
    else:
        found.append(Step("Approved", DONE, "It may take work."))
    found.append(_connection(node, connected, silent))
    found.append(_first_model(models, node.state == NodeState.GONE))
    return found


def _connection(node: Node, connected: bool | None, silent: bool) -> Step:
    if node.state == NodeState.GONE:
        return Step("Connected", FAILED, f"The agent has stopped ({node.state_reason}): start it again.")
    if connected:
        return Step("Connected", DONE, "It reads its work from Redis.")
    if silent:
        return Step("Connected", FAILED, "It has not been heard of for a while: does the agent still run?")
    if connected is None:
        return Step("Connected", NOW, "Redis does not answer the coordinator at the moment.")
    return Step(
        "Connected",
        NOW,
        "It does not reach Redis yet. If this stays: Redis must be reachable from the host "
        "(REDIS_URL, GPUTORRENT_REDIS_PUBLIC_URL; the embedded one with GPUTORRENT_REDIS_BIND).",
    )


def _first_model(models: Sequence[NodeModel], gone: bool) -> Step:
    name = "First model ready"
    for model in models:
        if model.state == ModelState.READY and not gone:
            return Step(name, DONE, f"{model.name} answers.")
    for state, doing in ((ModelState.LOADING, "is being loaded"), (ModelState.DOWNLOADING, "is downloaded")):
        for model in models:
            if model.state == state and not gone:
                return Step(name, NOW, f"{model.name} {doing}. Large models take minutes.", model.progress)
    if failed := next((m for m in models if m.state == ModelState.FAILED), None):
        return Step(name, FAILED, f"{failed.name}: {failed.reason or 'it could not be loaded'}")
    if misfit := next((m for m in models if not m.fits), None):
        return Step(name, FAILED, f"{misfit.name} can never be loaded here: {misfit.reason}")
    if offered := next((m for m in models if m.state in {ModelState.OFFERED, ModelState.SLEEPING}), None):
        return Step(name, WAITING, f"{offered.name} is loaded with the first request for it.")
    return Step(name, WAITING, "The agent has not told of a model yet.")


# -- reading ---------------------------------------------------------------------------------------------


def fetched(token: int) -> None:
    """The host that was given this token has taken the agent's wheel: it reaches us. Raises
    `redis.RedisError`."""
    if EnrolmentToken.objects.filter(pk=token, revoked_at=None).exists():
        blocking().set(_fetched_key(token), int(time.time()), ex=_KEPT_SECONDS)


def report(token: EnrolmentToken) -> dict[str, Any]:
    """How far everybody is who was given this token. Times are seconds since the epoch. Five queries."""
    nodes = list(token.nodes.prefetch_related("gpus", "models").order_by("-enrolled_at")[:MOST_NODES])
    leases, at = _wire(token.pk, [node.pk for node in nodes])
    late = timezone.now() - datetime.timedelta(seconds=settings.UNHEALTHY_AFTER_SECONDS)
    shown = []
    for node in nodes:
        connected = leases.get(node.pk) if leases is not None else None
        silent = node.last_beat_at is not None and node.last_beat_at < late
        found = steps(node, list(node.models.all()), connected, silent)
        shown.append(
            {
                "id": node.pk,
                "name": node.name,
                "pending": node.state == NodeState.PENDING,
                "ready": all(step.state == DONE for step in found),
                "model": next((m.name for m in node.models.all() if m.state == ModelState.READY), ""),
                "steps": found,
            }
        )
    return {
        "token": token.state,
        "uses": token.uses,
        "max_uses": token.max_uses,
        "expires_at": token.expires_at.timestamp() if token.expires_at else None,
        "fetched_at": at,
        "nodes": shown,
    }


def _wire(token: int, nodes: Sequence[str]) -> tuple[dict[str, bool] | None, int | None]:
    """Whose lease is alive, and when the wheel was last taken. None for what is not known."""
    try:
        answers: Any = blocking().mget([_fetched_key(token), *map(lease_key, nodes)])
    except redis.RedisError:
        return None, None
    leases = {node: lease is not None for node, lease in zip(nodes, answers[1:], strict=True)}
    return leases, int(answers[0]) if answers[0] else None


def _fetched_key(token: int) -> str:
    return f"gt:join:{token}"
