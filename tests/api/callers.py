"""Callers of the API: each a new key, as the headers that it comes with."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async

from api.authentication import new_key


async def caller(name: str = "ann", **options: Any) -> dict[str, str]:
    """The headers of a caller with a new key of these options."""
    _, secret = await sync_to_async(new_key)(name, **options)
    return {"Authorization": f"Bearer {secret}"}
