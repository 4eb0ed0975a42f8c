"""Answers on their way out: events of a stream, and an engine's refusal in our shape."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from django.conf import settings

from api import errors
from api.errors import ApiError
from gputorrent import background
from jobs.dispatch import Dispatcher
from jobs.errors import JobError
from jobs.interactive import InteractiveJob
from worker_agent.contract import RESPONSES, Chunk

_TOO_LONG = re.compile(
    r"maximum (context|model) length|than max_model_len|exceeds? the available context|context window", re.I
)
"""What vLLM, llama.cpp and others say of a prompt that is too long. Programs heed the code."""


def events(dispatcher: Dispatcher, job: InteractiveJob, first: bytes) -> AsyncGenerator[bytes, None]:
    """The whole stream. It ends with the engine's last event (``[DONE]``), or with one error event: never
    just so, since the official clients take a stream that simply stops for a success."""
    told = lambda e, seen: error_event(errors.of_job(e), job.request.path, seen)  # noqa: E731 - it is short
    return dispatcher.follow(job, first, told)


async def waiting(dispatcher: Dispatcher, job: InteractiveJob) -> AsyncGenerator[bytes, None]:
    """The stream of a job that has no node yet: comments while it waits, then its events.

    A comment (a line that begins with a colon) is what server-sent events have for that; clients skip it.
    """
    begun = asyncio.ensure_future(dispatcher.first(job))
    try:
        yield b": waiting\n\n"
        while not (await asyncio.wait({begun}, timeout=settings.KEEPALIVE_SECONDS))[0]:
            yield b": waiting\n\n"
        try:
            first = begun.result()
        except JobError as e:
            yield error_event(errors.of_job(e), job.request.path)
            return
    finally:
        await background.end([begun])
    if isinstance(first, Chunk):
        async with aclosing(events(dispatcher, job, first.data)) as rest:
            async for data in rest:
                yield data
    elif first.status >= 400:
        yield error_event(engine_refusal(first.status, first.body), job.request.path)
    else:
        yield first.body


def error_event(error: ApiError, path: str, seen: int = 0) -> bytes:
    """The one event that ends a stream which cannot go on; `seen` events went before it.

    That of `/v1/responses` has what OpenAI's reference says of its type, and `error` as well: official
    clients look for that, to raise instead of giving it out as one more event.
    """
    if path != RESPONSES:
        return b"data: " + error.body() + b"\n\n"
    told = {"type": "error", "sequence_number": seen, **error.data()}
    told |= {name: told["error"][name] for name in ("code", "message", "param")}
    return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"


def engine_refusal(status: int, body: bytes) -> ApiError:
    """What the engine said of the caller's request, in OpenAI's shape and with a code of ours: vLLM puts the
    status there, other engines their own words.

    An engine that refuses *us* (401 and 403: a wrong key for an engine that runs elsewhere) is no mistake of
    the caller's.
    """
    said: Any = None
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = msgspec.json.decode(body)
    error = said.get("error", said) if isinstance(said, dict) else {}
    error = error if isinstance(error, dict) else {}
    message = error.get("message")
    if not isinstance(message, str) or not message:
        message = f"the engine refused the request with status {status}"
        if status == 404 and error.get("detail") == "Not Found":
            message = "The model is not made for such requests: its engine does not know this path."
    if status in {401, 403}:
        return ApiError("upstream_failed", f"the engine refused the coordinator's request: {message}")
    param = error.get("param")
    return ApiError(
        "context_length_exceeded" if _TOO_LONG.search(message) else "rejected_by_engine",
        message,
        param=param if isinstance(param, str) else None,
        status=status,
    )
