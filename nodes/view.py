"""The registry as routing sees it: published to Redis by the registry, read into memory by each process.

Keys (the coordinator's alone):
    gt:nodes          hash: node id -> NodeView in MessagePack
    gt:nodes:slots    hash: "<node>/<model>" -> requests at once; only places that take work now
    gt:nodes:changes  stream: field ``n`` is the id of a node that changed. Readers remember the last entry
                      that they saw and fetch the nodes behind it; the whole hash only when it is gone
    gt:alive          since when Redis holds our state (its own clock, seconds); its absence says that Redis
                      came back empty
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import cast

import msgspec
import redis
from django.conf import settings
from msgspec import Struct

from gputorrent.redis import Pipe, Script
from nodes import capability
from nodes.capability import Weight
from nodes.models import Node, NodeState
from worker_agent.contract import ModelState

NODES = "gt:nodes"
SLOTS = "gt:nodes:slots"
CHANGES = "gt:nodes:changes"
ALIVE = "gt:alive"

CHANGES_KEPT = 2000
"""Twenty seconds of a thousand nodes' heartbeats; readers come four times a second."""
_AT_ONCE = 500
"""Who has missed more than this many changes reads everything."""


class ModelView(Struct, frozen=True, array_like=True, gc=False):
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


class NodeView(Struct, frozen=True, array_like=True, gc=False):
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
            pipe.xadd(CHANGES, {"n": view.id}, maxlen=CHANGES_KEPT)
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
        self._offers: dict[str, _Offers] = {}
        self._seen: frozenset[str] = frozenset()
        self._lenient_until = 0.0
        self._cursor = b""

    async def refresh(self, pipe: Pipe) -> frozenset[str]:
        """One or two trips to Redis. Returns the nodes that changed or are back. Raises `redis.RedisError`.

        When Redis has come back empty, what is in memory stays, leases included: agents renew them within
        seconds, and the board gives no slot to a node without one.
        """
        ids = list(self.nodes)
        changes, alive, found = await asyncio.gather(
            pipe.send("XRANGE", CHANGES, self._cursor or "-", "+", "COUNT", _AT_ONCE),
            pipe.send("EXISTS", ALIVE),
            _leased(pipe, ids),
        )
        self.redis_was_emptied = not alive
        if not alive and ids:
            self._lenient_until, self._seen = time.monotonic() + settings.LEASE_SECONDS, frozenset()
            return frozenset()
        back: frozenset[str] = frozenset()
        if ids:
            back, self._seen = found - self._seen, found
            self.leased = found | self.leased if time.monotonic() < self._lenient_until else found
        # The entry at the cursor comes again; if it does not, others behind it may be gone, too.
        if self._cursor and changes and changes[0][0] == self._cursor and len(changes) < _AT_ONCE:
            changed = await self._read_some(pipe, dict.fromkeys(fields[b"n"] for _, fields in changes[1:]))
            self._cursor = changes[-1][0]
        else:
            changed = await self._read_all(pipe)
        if new := [i for i in changed if i in self.nodes and i not in self._seen]:
            found = await _leased(pipe, new)
            self.leased |= found
            self._seen |= found
        return back | changed

    async def _read_some(self, pipe: Pipe, ids: Collection[bytes]) -> frozenset[str]:
        if not ids:
            return frozenset()
        packed = await pipe.send("HMGET", NODES, *ids)
        views = {i.decode(): _decode(p) if p else None for i, p in zip(ids, packed, strict=True)}
        self._take(views)
        return frozenset(views)

    async def _read_all(self, pipe: Pipe) -> frozenset[str]:
        # In this order: what changes in between is read again the next time.
        tip, packed = await asyncio.gather(
            pipe.send("XREVRANGE", CHANGES, "+", "-", "COUNT", 1), pipe.send("HGETALL", NODES)
        )
        views: dict[str, NodeView | None] = dict.fromkeys(self.nodes)
        views |= {i.decode(): _decode(value) for i, value in packed.items()}
        self._take(views)
        self._cursor = tip[0][0] if tip else b""
        return frozenset(views)

    def _take(self, views: Mapping[str, NodeView | None]) -> None:
        """Put these in place of what was known of them; None: not there any more."""
        # Copies, for whoever is still looking through them.
        self.nodes, self.by_model = {**self.nodes}, {**self.by_model}
        touched: set[str] = set()
        for id_, view in views.items():
            old = self.nodes.pop(id_, None) if view is None else self.nodes.get(id_)
            had = {m.name for m in old.models} if old else set()
            if view is not None:
                self.nodes[id_] = view
                for model in view.models:
                    self._offers.setdefault(model.name, _Offers()).put(view, model)
            now = {m.name for m in view.models} if view else set()
            for name in had - now:
                self._offers[name].remove(id_)
            touched |= had | now
        for name in touched:
            if found := self._offers[name].all():
                self.by_model[name] = found
            else:
                del self._offers[name]
                self.by_model.pop(name, None)


# The names come as one argument and leave as one word: a thousand of each would cost 3 ms a look in here.
_LEASES = """
local found = {}
for node in string.gmatch(ARGV[1], '%S+') do
  found[#found + 1] = redis.call('EXISTS', 'gt:node:' .. node .. ':lease')
end
return table.concat(found)
"""


async def _leased(pipe: Pipe, ids: Sequence[str]) -> frozenset[str]:
    """Those of the nodes that have a lease. Raises `redis.RedisError`."""
    if not ids:
        return frozenset()
    word: bytes = await Script(pipe, _LEASES)(" ".join(ids))
    return frozenset(compress(ids, map(b"1"[0].__eq__, word)))


Offer = tuple[NodeView, ModelView]


class _Offers:
    """The nodes that offer one model, with weights that know how fast the others are with it."""

    def __init__(self) -> None:
        self._told: dict[str, Offer] = {}
        self._corrected: dict[str, Offer] = {}
        self._usual = 0.0
        self._news: dict[str, None] = {}  # in order, so that equal registries look alike

    def put(self, node: NodeView, model: ModelView) -> None:
        self._told[node.id] = node, model
        self._news[node.id] = None

    def remove(self, node: str) -> None:
        del self._told[node]
        self._corrected.pop(node, None)
        self._news.pop(node, None)

    def all(self) -> list[Offer]:
        """Everybody, those that changed since the last call corrected anew; all if what is usual is another
        now. As long as it moves by a fiftieth at most that is not worth a thousand corrections."""
        told = [(m.weight, m.weight_from, m.stream_tokens_per_s) for _, m in self._told.values()]
        usual = capability.usual(told)
        if abs(usual - self._usual) > self._usual / 50:
            self._usual, self._news = usual, dict.fromkeys(self._told)
        for id_ in self._news:
            node, m = self._told[id_]
            weight = capability.correct(Weight(m.weight, m.weight_from), m.stream_tokens_per_s, self._usual)
            if weight.value != m.weight:
                m = msgspec.structs.replace(m, weight=weight.value, weight_from=weight.source)
            self._corrected[id_] = node, m
        self._news.clear()
        return list(self._corrected.values())
