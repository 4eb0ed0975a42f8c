"""From an engine's start to its first token: when may a model be called ready?"""

from __future__ import annotations

import asyncio

import msgspec

from worker_agent.engine_client import EngineClient, EngineError

_POLL_SECONDS = 0.25
_WARM_UP_SECONDS = 300.0


class LoadFailed(Exception):
    """The engine did not become ready. The message is the reason, from its own words where it has any."""


class _Card(msgspec.Struct):
    id: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card] = []


class _Version(msgspec.Struct):
    version: str = ""


async def until_serving(client: EngineClient, name: str) -> tuple[str, int]:
    """Wait until /health is 200 and a token has come; the engine's version and tokens of context.

    Raises `LoadFailed` if it serves, but not what it should. Waits for ever if nothing answers.
    """
    while True:
        if await is_healthy(client):
            break
        await asyncio.sleep(_POLL_SECONDS)
    try:
        version = msgspec.json.decode((await client.get("/version"))[1], type=_Version).version
        cards = msgspec.json.decode((await client.get("/v1/models"))[1], type=_Cards).data
        card = next((card for card in cards if card.id == name), None)
        if card is None:
            raise LoadFailed(f"what answers on its port does not serve {name}")
        await _warm_up(client, name)
    except (EngineError, msgspec.MsgspecError) as error:
        raise LoadFailed(f"it came up but did not answer properly: {error}") from error
    return f"vllm {version}", card.max_model_len or 0


async def is_healthy(client: EngineClient) -> bool:
    """Whether /health answers 200 (which an engine can do for hours without making a token)."""
    try:
        return (await client.get("/health", timeout=2.0))[0] == 200
    except EngineError:
        return False


async def _warm_up(client: EngineClient, name: str) -> None:
    """One real token (or, for a model that makes none, one embedding)."""
    body = msgspec.json.encode({"model": name, "prompt": "Hello", "max_tokens": 1})
    status, answer = await client.post("/v1/completions", body, timeout=_WARM_UP_SECONDS)
    if status in (400, 404, 405):
        body = msgspec.json.encode({"model": name, "input": "Hello"})
        status, answer = await client.post("/v1/embeddings", body, timeout=_WARM_UP_SECONDS)
    if status != 200:
        raise LoadFailed(f"it came up but generates nothing (HTTP {status}): {answer[:200]!r}")
