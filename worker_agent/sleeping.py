"""vLLM's sleep mode: an engine gives its memory back and keeps its process, so that waking takes a moment.

Level 1 keeps the weights in host memory. Level 2 drops them: they are read again when it wakes, between
making room for them and making the KV cache. The paths exist only in vLLM's development mode.
"""

from __future__ import annotations

import msgspec

from worker_agent.engine_client import EngineClient, EngineError
from worker_agent.loading import LoadFailed, one_token

_SLEEP_SECONDS = 120.0
_RELOAD = msgspec.json.encode({"method": "reload_weights"})


async def can_sleep(client: EngineClient) -> bool:
    """Whether this engine offers it."""
    try:
        status, _ = await client.get("/is_sleeping")
    except EngineError:
        return False
    return status == 200


async def fall_asleep(client: EngineClient, level: int) -> None:
    """Raises `LoadFailed` if it does not: such an engine is to be stopped."""
    await _post(client, f"/sleep?level={level}", b"", _SLEEP_SECONDS)


async def wake_up(client: EngineClient, name: str, level: int, seconds: float) -> None:
    """Returns once it has made a token. Raises `LoadFailed`."""
    if level == 1:
        await _post(client, "/wake_up", b"", seconds)
    else:
        await _post(client, "/wake_up?tags=weights", b"", seconds)
        await _post(client, "/collective_rpc", _RELOAD, seconds)
        await _post(client, "/wake_up?tags=kv_cache", b"", seconds)
    try:
        why = await one_token(client, name, seconds)
    except EngineError as error:
        why = str(error)
    if why is not None:
        raise LoadFailed(f"it woke up but generates nothing: {why}")


async def _post(client: EngineClient, path: str, body: bytes, seconds: float) -> None:
    try:
        status, answer = await client.post(path, body, timeout=seconds)
    except EngineError as error:
        raise LoadFailed(f"sleep mode: {path}: {error}") from error
    if status != 200:
        raise LoadFailed(f"sleep mode: {path} answered HTTP {status}: {answer[:200]!r}")
