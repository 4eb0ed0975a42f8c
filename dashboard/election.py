"""Which web process makes the state for all: one at a time, for as long as it says so every few seconds.

gt:dashboard:leader   the wire name of that process; expires
"""

from __future__ import annotations

from typing import Final

from gputorrent.redis import Pipe, Script

KEY: Final = "gt:dashboard:leader"
HOLD_MS: Final = 3000

# Take it or keep it; or, with 0 ms, give it up. One step, so that nobody prolongs another's time.
_LUA: Final = """
local key = 'gt:dashboard:leader'
local held = redis.call('GET', key)
if held and held ~= ARGV[1] then return 0 end
if tonumber(ARGV[2]) > 0 then redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) else redis.call('DEL', key) end
return 1
"""


class Election:
    """One process's part in it."""

    def __init__(self, pipe: Pipe, web: str) -> None:
        self._script, self._web = Script(pipe, _LUA), web

    async def hold(self) -> bool:
        """Whether this process leads for the next three seconds. Raises `redis.RedisError`."""
        return bool(await self._script(self._web, HOLD_MS))

    async def resign(self) -> None:
        """Let another lead at once. Raises `redis.RedisError`."""
        await self._script(self._web, 0)
