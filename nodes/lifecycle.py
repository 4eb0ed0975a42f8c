"""The life of a node. The only code that writes `Node.state`.

                    approve                    drain
    (enrolled) PENDING ------> ONLINE <====================> DRAINING
                                 |  ^        resume             |
                     lose        |  | return                    |  lose
                                 v  |                           v
                               UNHEALTHY <----------------------+
        leave: from ONLINE, DRAINING, UNHEALTHY to GONE;  return: from GONE and UNHEALTHY back to work
        revoke: from everywhere to REVOKED, which is final

A node that returns while the operator wants it drained returns to DRAINING.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

from django.db import transaction

from nodes.models import Node, NodeEvent, NodeState

log = logging.getLogger(__name__)


class Move(StrEnum):
    APPROVE = "approve"
    DRAIN = "drain"
    RESUME = "resume"
    LOSE = "lose"
    RETURN = "return"
    RETURN_DRAINED = "return_drained"
    LEAVE = "leave"
    REVOKE = "revoke"


_S = NodeState
MOVES: dict[Move, tuple[frozenset[NodeState], NodeState]] = {
    Move.APPROVE: (frozenset({_S.PENDING}), _S.ONLINE),
    Move.DRAIN: (frozenset({_S.ONLINE}), _S.DRAINING),
    Move.RESUME: (frozenset({_S.DRAINING}), _S.ONLINE),
    Move.LOSE: (frozenset({_S.ONLINE, _S.DRAINING}), _S.UNHEALTHY),
    Move.RETURN: (frozenset({_S.UNHEALTHY, _S.GONE}), _S.ONLINE),
    Move.RETURN_DRAINED: (frozenset({_S.UNHEALTHY, _S.GONE}), _S.DRAINING),
    Move.LEAVE: (frozenset({_S.ONLINE, _S.DRAINING, _S.UNHEALTHY}), _S.GONE),
    Move.REVOKE: (frozenset(set(NodeState) - {_S.REVOKED}), _S.REVOKED),
}


def move(node: Node, how: Move, reason: str, **columns: Any) -> bool:
    """Make a move if the node is still in the state it was read in. Returns whether it was made.

    False means that the move does not lead from that state, or that somebody else moved the node first:
    neither is an error. On success `node` carries the new state and `columns`.
    """
    froms, to = MOVES[how]
    if node.state not in froms:
        return False
    was = node.state
    with transaction.atomic():
        changed = Node.objects.filter(pk=node.pk, state=was).update(
            state=to, state_reason=reason[:300], **columns
        )
        if not changed:
            return False
        NodeEvent.objects.create(node=node, was=was, now=to, reason=reason[:300])
    node.state, node.state_reason = to, reason[:300]
    for name, value in columns.items():
        setattr(node, name, value)
    log.info("node=%s name=%s state=%s was=%s reason=%r", node.pk, node.name, to.value, was, reason)
    return True


def note(node: Node, reason: str) -> None:
    """An event that changes no state."""
    NodeEvent.objects.create(node=node, was=node.state, now=node.state, reason=reason[:300])
