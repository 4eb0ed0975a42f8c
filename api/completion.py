"""One request under /v1 that makes tokens, as one verb: bytes and headers in; status, headers and bytes, or
an iterator of bytes, out. Both doors (`api.views` and `api.lean`) call it and do nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from api import errors, schemas, streaming
from api.errors import ApiError, Headers
from api.gateway import Gateway
from jobs.dispatch import JobError
from worker_agent.contract import Chunk

JSON: Headers = [(b"content-type", b"application/json")]
SSE: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers would hold every token back
]


@dataclass(slots=True)
class Answer:
    """`body` is whole, or `parts` yields it. Closing `parts` early is the caller leaving."""

    status: int
    headers: Headers
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None


async def complete(gateway: Gateway, path: str, authorization: str, body: bytes) -> Answer:
    """Answer `POST path`. Never raises but for cancellation, which is the caller leaving."""
    try:
        caller = gateway.keys.caller(authorization)
        request = schemas.parse(path, body, key=caller.key)
        job, first = await gateway.dispatcher.begin(request)
    except JobError as e:
        return refuse(errors.of_job(e))
    except ApiError as e:
        return refuse(e)
    headers: Headers = [(b"x-request-id", job.id.encode())]
    if isinstance(first, Chunk):
        return Answer(200, SSE + headers, parts=streaming.events(gateway.dispatcher, job, first.data))
    if first.status >= 400:
        return refuse(streaming.engine_refusal(first.status, first.body), headers)
    kind = SSE if request.stream else JSON
    return Answer(first.status, kind + headers, first.body)


def refuse(error: ApiError, headers: Headers | None = None) -> Answer:
    """The answer that a refusal becomes."""
    return Answer(error.status, JSON + (headers or []) + error.headers, error.body())
