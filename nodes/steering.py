"""What operators can do to a node: the verbs behind the admin, the API and `manage.py node`.

Like those of `nodes.registry` they change the ledger, then publish; they block and raise `redis.RedisError`
when the wire is away, after which calling again is safe. `by` is who asked, for the node's history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gputorrent.redis import blocking
from nodes import acl, registry
from nodes.lifecycle import Move, move, note
from nodes.models import Node, NodeModel
from worker_agent.contract import FIELD, Drain, Load, Pin, Resume, Unload, control_key, encode


def find(name: str) -> Node:
    """A node by name or id. Raises `Refusal` 404."""
    found = Node.objects.filter(name=name).first() or Node.objects.filter(pk=name).first()
    if found is None:
        raise registry.Refusal(404, "node_not_found", f"no node is called {name[:80]!r}")
    return found


def approve(node: Node, by: str) -> bool:
    """Let a pending node work. Returns whether it was pending."""
    made = move(node, Move.APPROVE, f"approved by {by}")
    if made:
        registry.publish(node)
    return made


def drain(node: Node, by: str) -> bool:
    """No new work; what runs finishes. Holds over restarts of the agent until `resume`."""
    made = move(node, Move.DRAIN, f"drained by {by}", drain_wanted=True)
    if not made:
        Node.objects.filter(pk=node.pk).update(drain_wanted=True)
    registry.publish(node)
    _tell(node, encode(Drain()))
    return made


def resume(node: Node, by: str) -> bool:
    """Take work again."""
    made = move(node, Move.RESUME, f"resumed by {by}", drain_wanted=False)
    if not made:
        Node.objects.filter(pk=node.pk).update(drain_wanted=False)
    registry.publish(node)
    _tell(node, encode(Resume()))
    return made


def revoke(node: Node, by: str) -> bool:
    """Cut a node off for good: its Redis user and open connections at once, its secret with the next call."""
    made = move(node, Move.REVOKE, f"revoked by {by}")
    acl.withdraw(blocking(), node.pk)
    registry.publish(node)
    return made


def load(node: Node, model: str, by: str) -> None:
    """Ask a node to load a model it offers. Raises `Refusal` 404 or 409."""
    row = _offered(node, model)
    if not row.fits:
        raise registry.Refusal(
            409, "model_does_not_fit", f"{model} can never be loaded on {node.name}: {row.reason}"
        )
    _tell(node, encode(Load(model)))
    note(node, f"{by} asked for {model} to be loaded")


def unload(node: Node, model: str, by: str) -> None:
    """Ask a node to finish what runs with a model and free its memory. Raises `Refusal` 404."""
    _offered(node, model)
    _tell(node, encode(Unload(model)))
    note(node, f"{by} asked for {model} to be unloaded")


def pin(node: Node, model: str, by: str) -> None:
    """Never unload a model for another; holds over restarts. Raises `Refusal` 404."""
    _set_pin(node, model, by, True)


def unpin(node: Node, model: str, by: str) -> None:
    """It may make room again. Raises `Refusal` 404."""
    _set_pin(node, model, by, False)


def _set_pin(node: Node, model: str, by: str, pinned: bool) -> None:
    _offered(node, model)
    node.models.filter(name=model).update(pin_wanted=pinned)
    _tell(node, encode(Pin(model, pinned)))
    note(node, f"{by} {'pinned' if pinned else 'unpinned'} {model}")


def _offered(node: Node, model: str) -> NodeModel:
    row = node.models.filter(name=model).first()
    if row is None:
        raise registry.Refusal(404, "model_not_offered", f"node {node.name} does not offer {model}")
    return row


def _tell(node: Node, message: bytes) -> None:
    blocking().xadd(control_key(node.pk), {FIELD: message}, maxlen=1000)


NODE_VERBS: Final[dict[str, Callable[[Node, str], bool]]] = {
    "approve": approve,
    "drain": drain,
    "resume": resume,
    "revoke": revoke,
}
"""By name, for doors that are given one. Each returns whether there was anything to do."""

MODEL_VERBS: Final[dict[str, Callable[[Node, str, str], None]]] = {
    "load": load,
    "unload": unload,
    "pin": pin,
    "unpin": unpin,
}
"""Node, model, who asked."""
