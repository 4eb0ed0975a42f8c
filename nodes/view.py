"""The registry as routing sees it: published to Redis by the registry, read into memory by each process.

Keys (the coordinator's alone):
    gt:nodes          hash: node id -> NodeView in MessagePack
    gt:nodes:slots    hash: "<node>/<model>" -> requests at once; only places that take work now
    gt:nodes:version  a random word, new with every change: readers fetch the hash only when it differs
    gt:alive          since when Redis holds our state (its own clock, seconds); its absence says that Redis
                      came back empty
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
import redis
from django.conf import settings
from msgspec import Struct

from gputorrent.redis import Pipe
from nodes import capability
from nodes.capability import Weight
from nodes.models import Node, NodeState
from worker_agent.contract import ModelState, lease_key

NODES = "gt:nodes"
SLOTS = "gt:nodes:slots"
VERSION = "gt:nodes:version"
ALIVE = "gt:alive"


class ModelView(Struct, frozen=True, array_like=True):
    name: str
    state: ModelState
    slots: int
    max_model_len: int
    kv_cache_usage: float
    ttft_ms: float
    fits: bool
    need: int
    reason: str
    weight: float = 1.0  # of the node for this model: see `nodes.capability`
    weight_from: str = ""
    stream_tokens_per_s: float = 0.0


class NodeView(Struct, frozen=True, array_like=True):
    id: str
    name: str
    state: str
    incarnation: int
    models: list[ModelView]
    memory_budget: int
    memory_used: int
    updated_at: float  # seconds since the epoch

    @property
    def takes_work(self) -> bool:
        return self.state == NodeState.ONLINE


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(NodeView).decode


def of(node: Node) -> NodeView:
    """Read a node from the ledger. Two queries, none when `models` and `gpus` are prefetched."""
    weight = capability.weigh([(g.name, g.vram_total) for g in node.gpus.all()], node.labels)
    return NodeView(
        id=node.pk,
        name=node.name,
        state=node.state,
        incarnation=node.incarnation,
        models=[
            ModelView(
                m.name,
                ModelState(m.state),
                m.slots,
                m.max_model_len,
                m.kv_cache_usage,
                m.ttft_ms,
                m.fits,
                m.need,
                m.reason,
                weight.value,
                weight.source,
                m.stream_tokens_per_s,
            )
            for m in node.models.all()
        ],
        memory_budget=node.memory_budget,
        memory_used=node.memory_used,
        updated_at=(node.last_beat_at or node.enrolled_at).timestamp(),
    )


def publish(client: redis.Redis, views: Sequence[NodeView]) -> None:
    """Make the views current, atomically for each node. Raises `redis.RedisError`."""
    if not views:
        return
    # What a node had before says which of its places may have to be closed: to look through everybody's
    # would cost each heartbeat more the more nodes there are.
    before = cast("list[bytes | None]", client.hmget(NODES, [view.id for view in views]))
    with client.pipeline(transaction=True) as pipe:
        for view, packed in zip(views, before, strict=True):
            had = {m.name for m in _decode(packed).models} if packed else set()
            now = {m.name: m for m in view.models}
            ready = {n for n, m in now.items() if view.takes_work and m.state == ModelState.READY}
            if closed := (had | now.keys()) - ready:
                pipe.hdel(SLOTS, *(f"{view.id}/{name}" for name in closed))
            for name in ready:
                pipe.hset(SLOTS, f"{view.id}/{name}", str(now[name].slots))
            if view.state == NodeState.REVOKED:
                pipe.hdel(NODES, view.id)
            else:
                pipe.hset(NODES, view.id, _encode(view))
        pipe.set(VERSION, secrets.token_hex(8))
        pipe.execute()


def mark_filled(client: redis.Redis) -> None:
    """Redis holds our state from now on. What has only just come back may lack the signs of life of those who
    live, so absences count only when this is some time ago (`jobs.owners`). Raises `redis.RedisError`."""
    client.set(ALIVE, client.time()[0])


class Snapshot:
    """The registry in the memory of one process: fresh to within one refresh, fit for choosing, and never
    for deciding; the board decides."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeView] = {}
        self.leased: frozenset[str] = frozenset()
        self.by_model: dict[str, list[tuple[NodeView, ModelView]]] = {}
        self.redis_was_emptied = False
        self._seen: frozenset[str] = frozenset()
        self._lenient_until = 0.0
        self._version: bytes | None = None

    async def refresh(self, pipe: Pipe) -> bool:
        """One or two trips to Redis. Returns whether a node changed or is back. Raises `redis.RedisError`.

        When Redis has come back empty, what is in memory stays, leases included: agents renew them within
        seconds, and the board gives no slot to a node without one.
        """
        ids = list(self.nodes)
        asked: list[Any] = [pipe.send("GET", VERSION), pipe.send("EXISTS", ALIVE)]
        if ids:
            asked.append(pipe.send("MGET", *[lease_key(i) for i in ids]))
        version, alive, *rest = await asyncio.gather(*asked)
        self.redis_was_emptied = not alive
        if not alive and ids:
            self._lenient_until, self._seen = time.monotonic() + settings.LEASE_SECONDS, frozenset()
            return False
        back = False
        if ids:
            seen = frozenset(i for i, lease in zip(ids, rest[0], strict=True) if lease is not None)
            back, self._seen = not seen <= self._seen, seen
            self.leased = seen | self.leased if time.monotonic() < self._lenient_until else seen
        if version == self._version:
            return back
        answer = await pipe.send("HGETALL", NODES)
        packed: Iterable[bytes] = answer.values()
        self._take([_decode(value) for value in packed])
        new = [i for i in self.nodes if i not in set(ids)]
        if new:
            leases = await pipe.send("MGET", *[lease_key(i) for i in new])
            found = {i for i, lease in zip(new, leases, strict=True) if lease is not None}
            self.leased |= found
            self._seen |= found
        self._version = version
        return True

    def _take(self, views: list[NodeView]) -> None:
        self.nodes = {view.id: view for view in views}
        by_model: dict[str, list[tuple[NodeView, ModelView]]] = {}
        for view in views:
            for model in view.models:
                by_model.setdefault(model.name, []).append((view, model))
        self.by_model = {name: _corrected(offers) for name, offers in by_model.items()}


def _corrected(offers: list[tuple[NodeView, ModelView]]) -> list[tuple[NodeView, ModelView]]:
    """The same with weights that know how fast the others are with this model."""
    if not any(m.stream_tokens_per_s for _, m in offers):
        return offers
    told = ((Weight(m.weight, m.weight_from), m.stream_tokens_per_s) for _, m in offers)
    return [
        (node, msgspec.structs.replace(m, weight=weight.value, weight_from=weight.source))
        for (node, m), weight in zip(offers, capability.corrected(told), strict=True)
    ]
