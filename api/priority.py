"""The priority of one request: its key's, or less if it says so (``X-Priority: N``)."""

from __future__ import annotations

import re
from typing import Final

from msgspec import structs

from api.authentication import Caller
from api.errors import invalid
from jobs.interactive import Request

HEADER: Final = "x-priority"
LOWEST, HIGHEST = -100, 100
_NUMBER = re.compile(r"[+-]?[0-9]{1,3}")


def apply(request: Request, caller: Caller, header: str) -> Request:
    """The request with its priority; `header` is empty where it was not sent. Raises `ApiError` 400.

    Asking for more than the key has is no mistake, and gets the key's: a program need not know its key.
    """
    priority = caller.priority
    if header:
        asked = int(header) if _NUMBER.fullmatch(header.strip()) else HIGHEST + 1
        if not LOWEST <= asked <= HIGHEST:
            raise invalid(
                f"The header X-Priority must be a whole number from {LOWEST} to {HIGHEST}.",
                code="invalid_value",
                param=HEADER,
            )
        priority = min(priority, asked)
    return structs.replace(request, priority=priority) if priority else request
