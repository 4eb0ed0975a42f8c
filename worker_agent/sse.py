"""Server-sent events of an OpenAI-compatible engine, as bytes. Pure.

Only what accounting needs is parsed: events that carry usage, and those before the first token.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from worker_agent.contract import Usage

END = b"data: [DONE]\n\n"
HELD_BACK = False
"""Whether what comes before the first token is sent with it."""
_ERROR = b'data: {"error"'
_LATER_ERROR = b"\n\n" + _ERROR
_USAGE = b'"usage"'


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _WithUsage(Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] = []


class _Delta(Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None


class _Choice(Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(Struct):
    choices: list[_Choice] = []


class _ErrorBody(Struct):
    message: str = ""


class _Error(Struct):
    error: _ErrorBody | str


_with_usage = msgspec.json.Decoder(_WithUsage)
_event = msgspec.json.Decoder(_Event)
_error = msgspec.json.Decoder(_Error)


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    return Usage(usage.prompt_tokens, usage.completion_tokens or 0, cached or 0)


def prepared(body: bytes, job: str) -> bytes:
    """The body for an engine of ours: as it is. vLLM has the job's id from the header ``X-Request-Id``."""
    return body


def closed(events: bytes) -> tuple[bytes, bool]:
    """The events, and whether the stream ends with them."""
    return events, events.endswith(END)


def cut(pending: bytes) -> tuple[bytes, bytes]:
    """Split what has arrived into whole events and the begun one."""
    end = pending.rfind(b"\n\n")
    return (pending[: end + 2], pending[end + 2 :]) if end >= 0 else (b"", pending)


def take_usage(events: bytes, *, hide: bool) -> tuple[bytes, Usage | None]:
    """The events, without the usage event if it is to be hidden; and the usage if one told it.

    The usage event is the one with empty `choices`. Text in an answer cannot look like it: quotes inside
    JSON strings are escaped.
    """
    if _USAGE not in events:
        return events, None
    found: Usage | None = None
    kept = []
    for event in events.split(b"\n\n")[:-1]:
        if _USAGE in event and event.startswith(b"data:"):
            try:
                told = _with_usage.decode(event[5:])
            except msgspec.MsgspecError:
                told = _WithUsage()
            found = _usage(told.usage) or found
            if hide and told.usage is not None and not told.choices:
                continue
        kept.append(event)
    return b"".join(event + b"\n\n" for event in kept), found


def has_token(events: bytes) -> bool:
    """Whether any of these events carries part of an answer (a role alone does not)."""
    for event in events.split(b"\n\n"):
        if not event.startswith(b"data:") or event.endswith(b"[DONE]"):
            continue
        try:
            choices = _event.decode(event[5:]).choices
        except msgspec.MsgspecError:
            return True  # of a shape we do not know: it came from the engine, so it lives
        for choice in choices:
            delta = choice.delta
            if choice.text or choice.finish_reason:
                return True
            if delta is not None and (
                delta.content
                or delta.reasoning
                or delta.reasoning_content
                or delta.refusal
                or delta.tool_calls
            ):
                return True
    return False


def error_in(events: bytes) -> str | None:
    """The message of an error event among these, if there is one."""
    at = 0 if events.startswith(_ERROR) else events.find(_LATER_ERROR) + 2
    if at == 1:
        return None
    return error_message(events[at + 5 : events.find(b"\n\n", at)])


def error_message(body: bytes) -> str:
    """What an error body says, short; an engine's own words about itself, never the prompt."""
    try:
        error = _error.decode(body).error
    except msgspec.MsgspecError:
        return ""
    message = error if isinstance(error, str) else error.message
    return message[:300]


def body_usage(body: bytes) -> Usage | None:
    """Usage of a whole answer, if it tells one."""
    try:
        return _usage(_with_usage.decode(body).usage)
    except msgspec.MsgspecError:
        return None
