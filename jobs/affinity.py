"""Which node has seen the beginning of a prompt, so that a chat's next turn finds it in that node's cache.

One web process's memory, shared with the others through a short stream in Redis: at each refresh of the
snapshot a process adds one entry with what is new, and reads what the others added. What is lost, with Redis
or with the process, only costs the engines some work. Nothing but hashes and node ids is kept.

Keys (the coordinator's alone):
    gt:affinity  stream: field ``m`` is an `_Entry` in MessagePack
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from gputorrent.redis import Pipe
from jobs.mailbox import entries_of
from jobs.prompt import Prefix
from worker_agent.contract import FIELD

STREAM: Final = "gt:affinity"
STREAM_MAXLEN: Final = 200
"""Entries kept: five seconds of ten web processes, for readers that come four times a second."""

TTL_SECONDS: Final = 1800.0
"""A chat that rests longer has most likely been pushed out of the engine's cache by others."""

_MOST: Final = 50_000
_NEWS: Final = 1000


class _Entry(Struct, frozen=True, array_like=True):
    web: str
    names: dict[str, list[bytes]]  # by node


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


class Affinity:
    """Names of prompts' beginnings, and the node each was last answered by. Bounded in number and age."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = _MOST) -> None:
        self._clock, self._most = clock, most
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._news: dict[bytes, str] = {}
        self._cursor = "0-0"

    def __len__(self) -> int:
        return len(self._known)

    def node_for(self, prefix: Prefix) -> str:
        """The node that has seen the longest beginning that is known; empty if none is."""
        for name in prefix.look:
            if found := self._known.get(name):
                node, until = found
                if until > self._clock():
                    return node
        return ""

    def remember(self, prefix: Prefix, node: str) -> None:
        """A request was answered by `node`, whose cache now has its prompt."""
        for name in prefix.keep:
            self._note(name, node)
            if len(self._news) < _NEWS:
                self._news[name] = node

    def _note(self, name: bytes, node: str) -> None:
        self._known[name] = node, self._clock() + TTL_SECONDS
        self._known.move_to_end(name)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    async def exchange(self, pipe: Pipe, web: str) -> None:
        """Tell the other web processes what is new here, and take what they tell. `web` is our own id.

        Raises `redis.RedisError`.
        """
        asked: list[Any] = [pipe.send("XREAD", "COUNT", STREAM_MAXLEN, "STREAMS", STREAM, self._cursor)]
        if news := self._take_news():
            entry = _encode(_Entry(web, news))
            asked.append(pipe.send("XADD", STREAM, "MAXLEN", "~", STREAM_MAXLEN, "*", FIELD, entry))
        answer, *_ = await asyncio.gather(*asked)
        for entry_id, fields in entries_of(answer):
            self._cursor = entry_id.decode()
            self._hear(fields.get(FIELD, b""), web)

    def _take_news(self) -> dict[str, list[bytes]]:
        news, self._news = self._news, {}
        by_node: dict[str, list[bytes]] = {}
        for name, node in news.items():
            by_node.setdefault(node, []).append(name)
        return by_node

    def _hear(self, packed: bytes, web: str) -> None:
        try:
            entry = _decode(packed)
        except msgspec.MsgspecError:
            return  # of another version of this program
        if entry.web == web:
            return
        for node, names in entry.names.items():
            for name in names:
                self._note(name, node)
