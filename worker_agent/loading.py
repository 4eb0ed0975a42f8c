"""From an engine's start to its first token: when may a model be called ready?"""

from __future__ import annotations

import asyncio

import msgspec

from worker_agent.engine_client import EngineClient, EngineError
from worker_agent.meter import EngineLoad, parse_metrics

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
        if (why := await one_token(client, name, _WARM_UP_SECONDS)) is not None:
            raise LoadFailed(f"it came up but generates nothing: {why}")
    except (EngineError, msgspec.MsgspecError) as error:
        raise LoadFailed(f"it came up but did not answer properly: {error}") from error
    return f"vllm {version}", card.max_model_len or 0


async def is_healthy(client: EngineClient) -> bool:
    """Whether /health answers 200 (which an engine can do for hours without making a token)."""
    try:
        return (await client.get("/health", timeout=2.0))[0] == 200
    except EngineError:
        return False


async def load_of(client: EngineClient) -> EngineLoad | None:
    """What the engine's /metrics say of its batch; None if it does not answer within 2 s."""
    try:
        status, body = await client.get("/metrics", timeout=2.0)
    except EngineError:
        return None
    return parse_metrics(body.decode("utf-8", "replace")) if status == 200 else None


async def one_token(client: EngineClient, name: str, seconds: float) -> str | None:
    """Ask for one token (or, of a model that makes none, one embedding); why there was none, or None.

    Raises `EngineError` if nothing answers within `seconds`.
    """
    body = msgspec.json.encode({"model": name, "prompt": "Hello", "max_tokens": 1})
    status, answer = await client.post("/v1/completions", body, timeout=seconds)
    if status in (400, 404, 405, 501):
        body = msgspec.json.encode({"model": name, "input": "Hello"})
        status, answer = await client.post("/v1/embeddings", body, timeout=seconds)
    return None if status == 200 else f"HTTP {status}: {answer[:200]!r}"


async def is_alive(client: EngineClient, name: str, seconds: float) -> bool:
    """Whether a token comes, or at least an answer that is no failure of the engine (it may be full)."""
    try:
        why = await one_token(client, name, seconds)
    except EngineError:
        return False
    return why is None or not why.startswith("HTTP 5") or why.startswith("HTTP 503")
