"""Answers on their way out: events of a stream, and an engine's refusal in our shape."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from api import errors
from api.errors import ApiError
from jobs.dispatch import Dispatcher, JobError
from jobs.interactive import InteractiveJob


async def events(dispatcher: Dispatcher, job: InteractiveJob, first: bytes) -> AsyncGenerator[bytes, None]:
    """The whole stream. It ends with the engine's ``[DONE]``, or with one error event: never just so, since
    the official clients take a stream that simply stops for a success."""
    async with aclosing(dispatcher.follow(job)) as rest:
        yield first
        try:
            async for data in rest:
                yield data
        except JobError as e:
            yield b"data: " + errors.of_job(e).body() + b"\n\n"


def engine_refusal(status: int, body: bytes) -> ApiError:
    """What the engine said of the caller's request, in OpenAI's shape (vLLM puts a number into `code`)."""
    said: Any = None
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = msgspec.json.decode(body)
    error = said.get("error", said) if isinstance(said, dict) else {}
    error = error if isinstance(error, dict) else {}
    message = error.get("message")
    param, code = error.get("param"), error.get("code")
    return ApiError(
        status,
        "invalid_request_error",
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else f"the engine refused the request with status {status}",
        param=param if isinstance(param, str) else None,
    )
