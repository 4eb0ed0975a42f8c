"""One method of one path, as the schema describes it: the words that the table is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from api import errors
from api.openapi import answers
from jobs.errors import JobError

JSON: Final = "application/json"
SSE: Final = "text/event-stream"
TEXT: Final = "text/plain"
MSGPACK: Final = "application/msgpack"

KEY: Final = ("apiKey",)
STAFF: Final = ("staffKey",)
STAFF_OR_SESSION: Final = ("staffKey", "session")
NODE: Final = ("nodeSecret",)
SECURITY: Final[dict[str, dict[str, Any]]] = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "Any API key."},
    "staffKey": {"type": "http", "scheme": "bearer", "description": "An API key of staff."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "sessionid",
        "description": "A staff user's session in the admin. For reading only.",
    },
    "metricsToken": {"type": "http", "scheme": "bearer", "description": "GPUTORRENT_METRICS_TOKEN."},
    "nodeSecret": {"type": "http", "scheme": "bearer", "description": "A node's id and secret."},
}


@dataclass(frozen=True)
class Content:
    """A body: its type (None: not described further), its media type, an example."""

    kind: Any
    example: Any = None
    media: str = JSON


@dataclass(frozen=True)
class Query:
    """A parameter in the query, or in a header (`where`)."""

    name: str
    description: str
    schema: dict[str, Any]
    where: str = "query"


@dataclass(frozen=True)
class Operation:
    id: str
    tag: str
    summary: str
    responses: dict[int, tuple[str, Sequence[Content]]]
    """Status -> in words, and what may come as body."""
    security: tuple[str, ...] = ()
    request: Content | None = None
    refusals: tuple[int, ...] = ()
    """Statuses of refusals besides those that every operation may have."""
    refusal: Any = answers.Error
    query: tuple[Query, ...] = ()


def ends() -> dict[int, list[str]]:
    """How a job may end without an answer: HTTP status -> codes."""
    found: dict[int, list[str]] = {}
    for kind in JobError.__subclasses__():
        found.setdefault(errors.of_job(kind("")).status, []).append(kind.code)
    return found
