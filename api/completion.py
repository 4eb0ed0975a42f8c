"""One request under /v1 that makes tokens, as one verb: bytes and headers in; status, headers and bytes, or
an iterator of bytes, out. Both doors (`api.views` and `api.lean`) call it and do nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from api import errors, schemas, streaming
from api.errors import ApiError, Headers
from api.gateway import Gateway
from jobs.errors import JobError
from worker_agent.contract import Chunk

JSON: Headers = [(b"content-type", b"application/json")]
SSE: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers would hold every token back
]


@dataclass(slots=True)
class Answer:
    """`body` is whole, or `parts` yields it. A door calls `close` when it is done, however it ends."""

    status: int
    headers: Headers
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    on_close: Callable[[], None] | None = None

    async def close(self) -> None:
        """The caller has everything, or has left: the job ends if it has not yet.

        Closing the generator alone would not do: one that was never started does nothing when closed.
        """
        if self.parts is not None:
            await self.parts.aclose()
        if self.on_close is not None:
            self.on_close()


async def complete(gateway: Gateway, path: str, authorization: str, body: bytes) -> Answer:
    """Answer `POST path`. Never raises but for cancellation, which is the caller leaving."""
    limits: Headers = []
    try:
        caller = gateway.keys.caller(authorization)
        request = caller.authorise(schemas.parse(path, body, key=caller.key))
        permit = await gateway.admit(caller, request) if caller.limits else None
        limits = permit.headers if permit else []
        job = await gateway.dispatcher.submit(request, permit.over if permit else None)
        if request.stream and not job.node:
            # It waits, perhaps for a model to be loaded: the stream opens now and is kept alive meanwhile.
            headers: Headers = [(b"x-request-id", job.id.encode()), *limits]
            parts = streaming.waiting(gateway.dispatcher, job)
            return Answer(200, SSE + headers, parts=parts, on_close=lambda: gateway.dispatcher.abandon(job))
        first = await gateway.dispatcher.first(job)
    except JobError as e:
        return refuse(errors.of_job(e), limits)
    except ApiError as e:
        return refuse(e)
    headers = [(b"x-request-id", job.id.encode()), *limits]
    if isinstance(first, Chunk):
        parts = streaming.events(gateway.dispatcher, job, first.data)
        return Answer(200, SSE + headers, parts=parts, on_close=lambda: gateway.dispatcher.abandon(job))
    if first.status >= 400:
        return refuse(streaming.engine_refusal(first.status, first.body), headers)
    kind = SSE if request.stream else JSON
    return Answer(first.status, kind + headers, first.body)


def refuse(error: ApiError, headers: Headers | None = None) -> Answer:
    """The answer that a refusal becomes."""
    return Answer(error.status, JSON + (headers or []) + error.headers, error.body())
