"""What the agents say they have: the attempts in each node's last two heartbeats.

Key (the coordinator's alone):
    gt:nodes:attempts   hash: node id -> Listing in MessagePack

A list is a snapshot: it was taken on the node before the coordinator received it, and knows nothing of what
was placed since. An agent sends its beats one after another, each after the answer to the one before (or
after giving that up, 10 s later). So of two lists received half a beat apart, at least the later was taken
after the earlier was received, or the earlier was received within 10 s of being taken; and an attempt placed
`GRACE_SECONDS` before both is in neither only if the agent does not have it. Beats of agents whose connection
to Redis is down are not counted: work may lie in their inbox, and answers in their outbox.
"""

from __future__ import annotations

import time
from typing import cast

import msgspec
import redis
from django.conf import settings
from msgspec import Struct

from gputorrent.redis import Pipe
from worker_agent.contract import Heartbeat

KEY = "gt:nodes:attempts"
GRACE_SECONDS = 15.0
"""More than an agent waits for the answer to a beat, with room for what a message takes."""


class Listing(Struct, frozen=True, array_like=True):
    """`at` and `before_at` are seconds of Redis's clock, the one that placements are dated by. An attempt is
    named ``job:attempt``."""

    at: float
    incarnation: int
    attempts: frozenset[str]
    before_at: float = 0.0  # 0: there was no beat before, of this incarnation
    before: frozenset[str] = frozenset()

    def lacks(self, attempt: str, since: float) -> bool:
        """Whether the agent does not have an attempt that was placed `since` (seconds)."""
        if since + GRACE_SECONDS > self.before_at:
            return False
        return attempt not in self.attempts and attempt not in self.before

    @property
    def lasting(self) -> frozenset[str]:
        """What the agent had at both beats."""
        return self.attempts & self.before

    def is_fresh(self, now: float) -> bool:
        """Whether the node beats: an old list says nothing of what it does now."""
        return now - self.at < 3 * settings.HEARTBEAT_SECONDS + GRACE_SECONDS


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Listing).decode


def take(client: redis.Redis, node: str, beat: Heartbeat, arrived: float) -> None:
    """Keep the list of a beat that arrived then (`time.monotonic`). Raises `redis.RedisError`.

    Not when it is taken: a database that was frozen meanwhile would make an old list look new.
    """
    if not beat.redis_connected:
        return
    trip = client.pipeline(transaction=False)
    trip.hget(KEY, node)
    trip.time()
    packed, clock = trip.execute()
    at = seconds(clock) - (time.monotonic() - arrived)
    last = _decode(packed) if packed else None
    listing = following(last, at, beat.incarnation, frozenset(beat.attempts))
    if listing is not last:
        client.hset(KEY, node, _encode(listing))


def following(last: Listing | None, at: float, incarnation: int, attempts: frozenset[str]) -> Listing | None:
    """The listing after a beat. A beat sent at once, because a model changed, replaces the last, not both."""
    if last is None or incarnation > last.incarnation:
        return Listing(at, incarnation, attempts)
    if incarnation < last.incarnation or at < last.at:
        return last
    if at - last.at < settings.HEARTBEAT_SECONDS / 2:
        # Neither what came nor what went in between is certain: it is in one of them.
        return Listing(at, incarnation, attempts, last.before_at, last.before)
    return Listing(at, incarnation, attempts, last.at, last.attempts)


async def read(pipe: Pipe) -> dict[str, Listing]:
    """The listing of each node that has beaten since Redis was last empty. Raises `redis.RedisError`."""
    answer: dict[bytes, bytes] = await pipe.send("HGETALL", KEY)
    return {node.decode(): _decode(packed) for node, packed in answer.items()}


def seconds(clock: object) -> float:
    """Redis's TIME as seconds since the epoch."""
    whole, micros = cast("tuple[int, int]", clock)
    return int(whole) + int(micros) / 1e6
