from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from gputorrent.redis import Pipe
from jobs.board import Board
from nodes import view
from tests.jobs.scripted import ScriptedNode, work

NODES = ("a" * 16, "b" * 16)


@pytest.fixture(autouse=True)
def _empty_wire(wire: redis.Redis) -> None:
    """Every test here may touch Redis, which holds nothing but the sign that it is ours."""
    wire.set(view.ALIVE, "1")


@pytest.fixture
async def board(pipe: Pipe) -> Board:
    return Board(pipe)


@pytest.fixture
def node(wire: redis.Redis) -> ScriptedNode:
    """A node with one slot for model `m`."""
    return ScriptedNode(wire, NODES[0])


@pytest.fixture
def reserve(board: Board) -> Callable[..., Awaitable[Any]]:
    """Reserve for a job on both nodes, ready to wait for a minute."""

    async def reserve(job: str = "j1", attempt: int = 1, order: tuple[str, ...] = NODES, **how: Any) -> Any:
        fields = {k: how.pop(k) for k in ("reply", "model", "body") if k in how}
        how = {"tenant": "t", "wait_seconds": 60, **how}
        return await board.reserve(work(job, attempt, **fields), order, **how)

    return reserve
