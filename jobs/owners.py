"""Which web processes are gone, and with them the callers of their jobs.

A web process renews ``gt:web:<web>`` every 2 s; the key lasts for 10 s. Its absence alone proves little:
after a freeze of Redis every key of that kind has run out at once, and each process needs one turn of its
loop to be back. So an absence counts when it was seen twice, `ABSENT_SECONDS` apart, and never soon after
Redis came back empty. A process that was frozen itself and is taken for gone finds its jobs cancelled when it
is back; their callers get one error each.

Key (the coordinator's alone):
    gt:gone:<web>   when its absence was first seen (Redis's clock, seconds)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gputorrent.redis import Pipe
from jobs.mailbox import web_key
from nodes import listing, view

ABSENT_SECONDS = 6.0
SETTLED_SECONDS = 15.0
_REMEMBER_SECONDS = 600


async def now_and_settled(pipe: Pipe) -> tuple[float, bool]:
    """Redis's clock (seconds), and whether Redis has held our state long enough for absences to count.

    Raises `redis.RedisError`.
    """
    clock, since = await asyncio.gather(pipe.send("TIME"), pipe.send("GET", view.ALIVE))
    now = listing.seconds(clock)
    return now, since is not None and now - float(since) >= SETTLED_SECONDS


async def gone(pipe: Pipe, webs: Iterable[str]) -> set[str]:
    """Those of these web processes that are gone for certain. Raises `redis.RedisError`."""
    asked = sorted(set(webs))
    if not asked:
        return set()
    (now, settled), *there = await asyncio.gather(
        now_and_settled(pipe), *(pipe.send("EXISTS", web_key(web)) for web in asked)
    )
    absent = [web for web, exists in zip(asked, there, strict=True) if not exists]
    if present := [_key(web) for web in asked if web not in absent]:
        await pipe.send("DEL", *present)
    if not settled or not absent:
        return set()
    for web in absent:
        pipe.send("SET", _key(web), now, "NX", "EX", _REMEMBER_SECONDS)
    first_seen = await asyncio.gather(*(pipe.send("GET", _key(web)) for web in absent))
    return {
        web
        for web, seen in zip(absent, first_seen, strict=True)
        if seen is not None and now - float(seen) >= ABSENT_SECONDS
    }


def _key(web: str) -> str:
    return f"gt:gone:{web}"
