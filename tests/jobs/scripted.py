"""Nodes that do what a test tells them: published for routing, alive, their inbox read by the test itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import redis

from nodes import view
from nodes.models import Node, NodeModel, NodeState
from worker_agent.contract import (
    Chunk,
    Control,
    Done,
    Failed,
    ModelState,
    Outcome,
    Reply,
    Usage,
    Work,
    control_key,
    decode_control,
    decode_work,
    encode,
    inbox_key,
    lease_key,
    reply_key,
)

PATIENCE_SECONDS = 10.0


def standing_still(true: Callable[[], bool]) -> bool:
    """Whether something comes to hold in the server while this loop does not turn."""
    deadline = time.monotonic() + 5
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


async def until(true: Callable[[], Any]) -> Any:
    """Let the loop run until something holds, and return it. The limit is for broken code only."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)
    return found


def work(job: str = "j1", attempt: int = 1, **changes: Any) -> Work:
    """An attempt at a completion by model `m`, of an asynchronous job unless `reply` is given."""
    fields: dict[str, Any] = {
        "job": job,
        "attempt": attempt,
        "lease": f"{job}:{attempt}".encode().ljust(16, b".")[:16],
        "reply": "",
        "model": "m",
        "path": "/v1/completions",
        "body": b'{"model":"m","prompt":"secret"}',
        "stream": False,
        "hide_usage": False,
        "first_token_seconds": 1.0,
        "stall_seconds": 1.0,
        "total_seconds": 1.0,
    }
    return Work(**{**fields, **changes})


class ScriptedNode:
    """One node with one model. Blocking calls: they take no time that matters here."""

    def __init__(
        self,
        wire: redis.Redis,
        id_: str = "a" * 16,
        *,
        model: str = "m",
        slots: int = 1,
        state: ModelState = ModelState.READY,
        labels: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.wire = wire
        self.id = id_
        self.place = f"{id_}/{model}"
        self.model = NodeModel(name=model, state=state, slots=slots, **more)
        self.node = Node(pk=id_, name=f"node-{id_[:4]}", state=NodeState.ONLINE, incarnation=1)
        self.node.labels = labels or {}
        self.live()
        self.publish()

    def live(self) -> None:
        self.wire.set(lease_key(self.id), "1")

    def die(self) -> None:
        self.wire.delete(lease_key(self.id))

    def publish(self, **changes: Any) -> None:
        """Make the node what routing sees; fields of the model may change on the way."""
        for name, value in changes.items():
            setattr(self.model, name, value)
        self.node._prefetched_objects_cache = {  # type: ignore[attr-defined]
            "models": [self.model],
            "gpus": [],
        }
        view.publish(self.wire, [view.of(self.node)])

    # -- what the coordinator sent ---------------------------------------------------------------------

    def inbox(self) -> list[Work]:
        """Everything that lies in the inbox; it is taken out."""
        return [decode_work(m) for m in self._drain(inbox_key(self.id))]

    def controls(self) -> list[Control]:
        return [decode_control(m) for m in self._drain(control_key(self.id))]

    def _drain(self, key: str) -> list[bytes]:
        entries: Any = self.wire.xrange(key)
        if entries:
            self.wire.xdel(key, *[entry for entry, _ in entries])
        return [fields[b"m"] for _, fields in entries]

    async def take(self) -> Work:
        """The next work, once it is there."""
        found: list[Work] = await until(self.inbox)
        assert len(found) == 1
        return found[0]

    # -- what it answers -------------------------------------------------------------------------------

    def reply(self, *replies: Reply, to: Work) -> None:
        self.wire.xadd(reply_key(to.reply), {"m": encode(list(replies))}, nomkstream=True)

    def chunk(self, to: Work, seq: int, data: bytes) -> None:
        self.reply(Chunk(to.job, to.attempt, to.lease, seq, data), to=to)

    def done(self, to: Work, seq: int = 0, body: bytes = b"{}", status: int = 200) -> None:
        self.reply(done(to, seq, body, status), to=to)

    def fail(self, to: Work, outcome: Outcome, seq: int = 0, message: str = "") -> None:
        self.reply(Failed(to.job, to.attempt, to.lease, seq, outcome, message), to=to)


def done(to: Work, seq: int = 0, body: bytes = b"{}", status: int = 200) -> Done:
    """The end of an answer of 7 tokens to a prompt of 3."""
    usage = Usage(3, 7) if status < 400 else None
    return Done(to.job, to.attempt, to.lease, seq, status, body, "application/json", usage, 20.0, 100.0)
