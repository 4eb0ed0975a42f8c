"""How often something was found to differ between the ledger, the board and the agents, and was put right.

Key (the coordinator's alone):
    gt:heals   hash: kind -> times since Redis was last empty

Nodes that die, and what was on them, are not counted: that is dealt with, not healed. In normal life all
counts stay 0.
"""

from __future__ import annotations

import logging
from enum import StrEnum

from gputorrent.redis import Pipe

log = logging.getLogger(__name__)

KEY = "gt:heals"


class Heal(StrEnum):
    SLOT = "slot"  # held for an attempt that is over, or whose web process is gone
    WAITER = "waiter"  # stood in a queue though nobody waits
    LOST_WAITER = "lost_waiter"  # waited, but stood in no queue
    LOST_WORK = "lost_work"  # the node does not have what it was given
    UNWANTED_WORK = "unwanted_work"  # a node is at an attempt that is over
    RECORD = "record"  # an open row whose web process is gone
    BOARD = "board"  # left-over keys and wrong sums


async def note(pipe: Pipe, kind: Heal, times: int = 1) -> None:
    """Count. Raises `redis.RedisError`."""
    if times:
        log.warning("healed kind=%s times=%d", kind, times)
        await pipe.send("HINCRBY", KEY, kind, times)


async def read(pipe: Pipe) -> dict[str, int]:
    """Times by kind; 0 for those that never were. Raises `redis.RedisError`."""
    found: dict[bytes, bytes] = await pipe.send("HGETALL", KEY)
    return {**{kind.value: 0 for kind in Heal}, **{k.decode(): int(v) for k, v in found.items()}}
