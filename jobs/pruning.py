"""Keys that were left over in Redis: of queues that are empty, of nodes that have left."""

from __future__ import annotations

from asgiref.sync import sync_to_async

from gputorrent.redis import Pipe, piped
from jobs import heals
from jobs.board import Board
from jobs.heals import Heal
from nodes import listing
from nodes.models import Node, NodeState

_PREFIXES = ("gt:board:queue:", "gt:board:turns:")


async def clear() -> int:
    """Left-over keys of the board and of nodes that have left; returns how much of the board was wrong.

    Raises `redis.RedisError`.
    """
    async with piped() as pipe:
        wrong = await Board(pipe).prune(sorted(await _models_on_board(pipe)))
        await heals.note(pipe, Heal.BOARD, wrong)
        known = await sync_to_async(_known_nodes)()
        if left := [n for n in await listing.read(pipe) if n not in known]:
            await pipe.send("HDEL", listing.KEY, *left)
        return wrong


async def _models_on_board(pipe: Pipe) -> set[str]:
    """Models that have a queue, or had one."""
    models, cursor = set(), b"0"
    while True:
        cursor, keys = await pipe.send("SCAN", cursor, "MATCH", "gt:board:*", "COUNT", 1000)
        for key in map(bytes.decode, keys):
            models |= {key.removeprefix(p) for p in _PREFIXES if key.startswith(p)}
        if int(cursor) == 0:
            return models


def _known_nodes() -> set[str]:
    return set(Node.objects.exclude(state=NodeState.REVOKED).values_list("pk", flat=True))
