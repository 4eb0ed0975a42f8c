"""One request that an engine answers, as one verb: bytes and headers in; status, headers and bytes, or
an iterator of bytes, out. Both doors (`api.views` and `api.lean`) call it and do nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

from msgspec import Struct

from api import errors, priority, schemas, streaming
from api.authentication import Caller, Stranger
from api.errors import ApiError, Headers
from api.gateway import Gateway
from api.limits import Permit
from gputorrent import tracing
from jobs import counting
from jobs.dispatch import Dispatcher
from jobs.errors import JobError, NotPermitted
from jobs.interactive import InteractiveJob, Request
from worker_agent.contract import Chunk

_JSON: Final = b"application/json"
_PRIORITY: Final = priority.HEADER.encode()
JSON: Headers = [(b"content-type", _JSON)]
SSE: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers would hold every token back
]


class Answer(Struct):
    """`body` is whole, or `parts` yields it. A door calls `close` when it is done, however it ends. One that
    can write without waiting may give `job` a sink before it asks for the first part: most of the others go
    there, in their order among those that are yielded."""

    status: int
    headers: Headers
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    job: InteractiveJob | None = None
    on_close: Callable[[], None] | None = None

    async def close(self) -> None:
        """The caller has everything, or has left: the job ends if it has not yet.

        Closing the generator alone would not do: one that was never started does nothing when closed.
        """
        if self.parts is not None:
            await self.parts.aclose()
        if self.on_close is not None:
            self.on_close()


def identify(gateway: Gateway, path: str, headers: Mapping[bytes, bytes]) -> Caller | Answer:
    """Who calls, or the refusal of a stranger. A door asks before it reads the body, so that guessing costs
    neither the body's memory nor a task, and the answer was put together long before. The names of `headers`
    are in lower case."""
    caller = gateway.keys.find(headers.get(b"authorization", b"").decode("latin-1"))
    if isinstance(caller, Stranger):
        counting.refused(gateway.dispatcher.metrics, path, _STRANGERS_CODE)
        return _STRANGERS[caller]
    tracing.current().key = caller.name
    return caller


async def complete(
    gateway: Gateway, path: str, caller: Caller, headers: Mapping[bytes, bytes], body: bytes
) -> Answer:
    """Answer `POST path` for a caller who was identified. Never raises but for cancellation, which is the
    caller leaving."""
    trace = tracing.current()
    permit: Permit | None = None
    try:
        must_be_json(headers)
        x_priority = headers.get(_PRIORITY, b"").decode("latin-1")
        request = caller.authorise(schemas.parse(path, body, key=caller.key))
        request = priority.apply(request, caller, x_priority)
        permit = gateway.ask_leave(caller, request)
        job = await _submit(gateway.dispatcher, request, permit)
        limits = permit.headers if permit else []
        trace.job = job.id
        if request.stream and not job.node:
            # It waits, perhaps for a model to be loaded: the stream opens now and is kept alive meanwhile.
            return _stream(gateway, job, streaming.waiting(gateway.dispatcher, job), limits)
        first = await gateway.dispatcher.first(job)
    except JobError as e:
        trace.job = e.job
        return refuse(errors.of_job(e), permit.headers if permit else None)
    except ApiError as e:
        counting.refused(gateway.dispatcher.metrics, path, e.code)
        return refuse(e)
    if isinstance(first, Chunk):
        return _stream(gateway, job, streaming.events(gateway.dispatcher, job, first.data), limits)
    if first.status >= 400:
        return refuse(streaming.engine_refusal(first.status, first.body), limits)
    return Answer(first.status, (SSE if request.stream else JSON) + limits, first.body)


async def _submit(dispatcher: Dispatcher, request: Request, permit: Permit | None) -> InteractiveJob:
    """Submit a request under the condition that the limits of its key permit it: both are asked of Redis in
    one trip. Raises `ApiError` 429, `JobError`."""
    if permit is None:
        return await dispatcher.submit(request)
    try:
        job = await dispatcher.submit(request, permit, permit.proof)
    except JobError:
        await permit.granted()  # that the limits refuse it comes first
        raise
    except NotPermitted:
        await permit.granted()
        # It holds after all: the two were in different calls, and Redis had to be sent the first one again.
        return await dispatcher.submit(request, permit)
    try:
        await permit.granted()
    except BaseException:
        dispatcher.abandon(job)
        raise
    return job


def _stream(
    gateway: Gateway, job: InteractiveJob, parts: AsyncGenerator[bytes, None], limits: Headers
) -> Answer:
    return Answer(200, SSE + limits, parts=parts, job=job, on_close=lambda: gateway.dispatcher.abandon(job))


def must_be_json(headers: Mapping[bytes, bytes]) -> None:
    """Raises `ApiError` 415 for a body that says it is something else, or compressed. One that says nothing
    is taken for JSON, as OpenAI does."""
    said = headers.get(b"content-type", _JSON)
    kind = _JSON if said == _JSON else said.partition(b";")[0].strip().lower()
    if kind and kind != _JSON and not kind.endswith(b"+json"):
        shown = kind[:80].decode("latin-1")
        raise ApiError("unsupported_media_type", f"Send 'Content-Type: application/json', not '{shown}'.")
    encoding = headers.get(b"content-encoding")
    if encoding and encoding.strip().lower() not in {b"", b"identity"}:
        raise ApiError("unsupported_media_type", "Send the body uncompressed, without 'Content-Encoding'.")


def refuse(error: ApiError, limits: Headers | None = None) -> Answer:
    """The answer that a refusal becomes; `limits` are the headers of a key that has some."""
    return Answer(error.status, JSON + (limits or []) + error.headers, error.body())


_STRANGERS_CODE: Final = errors.unauthorized("").code
_STRANGERS: Final = {why: refuse(errors.unauthorized(why.value)) for why in Stranger}
"""Their answers, which nobody changes: a stranger is told no more than that."""
