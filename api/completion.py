"""One request under /v1 that makes tokens, as one verb: bytes and headers in; status, headers and bytes, or
an iterator of bytes, out. Both doors (`api.views` and `api.lean`) call it and do nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from api import errors, priority, schemas, streaming
from api.errors import ApiError, Headers
from api.gateway import Gateway
from jobs.errors import JobError
from jobs.interactive import InteractiveJob
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


async def complete(
    gateway: Gateway, path: str, authorization: str, body: bytes, x_priority: str = ""
) -> Answer:
    """Answer `POST path`; `authorization` and `x_priority` are headers, empty where they were not sent.

    Never raises but for cancellation, which is the caller leaving.
    """
    try:
        caller = gateway.keys.caller(authorization)
        request = priority.apply(schemas.parse(path, body, key=caller.key), caller, x_priority)
        job = await gateway.dispatcher.submit(request)
        if request.stream and not job.node:
            # It waits, perhaps for a model to be loaded: the stream opens now and is kept alive meanwhile.
            return _stream(gateway, job, streaming.waiting(gateway.dispatcher, job))
        first = await gateway.dispatcher.first(job)
    except JobError as e:
        return refuse(errors.of_job(e))
    except ApiError as e:
        return refuse(e)
    if isinstance(first, Chunk):
        return _stream(gateway, job, streaming.events(gateway.dispatcher, job, first.data))
    if first.status >= 400:
        return refuse(streaming.engine_refusal(first.status, first.body), _named(job))
    kind = SSE if request.stream else JSON
    return Answer(first.status, kind + _named(job), first.body)


def _stream(gateway: Gateway, job: InteractiveJob, parts: AsyncGenerator[bytes, None]) -> Answer:
    return Answer(200, SSE + _named(job), parts=parts, on_close=lambda: gateway.dispatcher.abandon(job))


def _named(job: InteractiveJob) -> Headers:
    return [(b"x-request-id", job.id.encode())]


def refuse(error: ApiError, headers: Headers | None = None) -> Answer:
    """The answer that a refusal becomes."""
    return Answer(error.status, JSON + (headers or []) + error.headers, error.body())
