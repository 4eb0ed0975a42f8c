"""``/v1/responses``: typed server-sent events and their accounting, as bytes. Pure.

The counterpart of `sse`, with the same functions. There is no ``[DONE]``: one event is the last by its type,
and has the usage. As there, only what accounting needs is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from worker_agent.contract import Usage

HELD_BACK: Final = True
"""vLLM says `response.created` before it has read the prompt. Sent on, it would be the first byte of the
answer: no other node might try any more, and the time to the first token would be measured by it."""

_ENDS: Final = ("response.completed", "response.incomplete")
_END_MARKS: Final = tuple(f'"{name}"'.encode() for name in _ENDS)
_ERROR_MARKS: Final = (b'"response.failed"', b'"error"')


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None


class _ErrorBody(Struct):
    message: str | None = None


class _Answer(Struct):
    usage: _Usage | None = None
    error: _ErrorBody | None = None


class _Event(Struct):
    type: str = ""
    response: _Answer | None = None
    error: _ErrorBody | str | None = None
    message: str | None = None


_UNKNOWN: Final = _Event(type="unknown")
_answer = msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)


def prepared(body: bytes, job: str) -> bytes:
    """The body for an engine of ours, whose answer is to have the job's id: here vLLM takes it from a field,
    not from the header. The coordinator lets no caller send that field."""
    start = body.index(b"{") + 1
    return body[:start] + f'"request_id":"resp_{job}",'.encode() + body[start:]


def closed(events: bytes) -> tuple[bytes, bool]:
    """The events up to the last of the stream, and whether that is among them."""
    if any(mark in events for mark in _END_MARKS):  # which an echo of the request may have, too
        end = 0
        for event in events.split(b"\n\n")[:-1]:
            end += len(event) + 2
            if (told := _decoded(event)) and told.type in _ENDS:
                return events[:end], True
    return events, False


def take_usage(events: bytes, *, hide: bool) -> tuple[bytes, Usage | None]:
    """The events as they are, and the usage if one told it. It is part of an answer, so nothing is hidden."""
    if any(mark in events for mark in _END_MARKS):
        for told in _all(events):
            if told.type in _ENDS and told.response is not None:
                return events, _usage(told.response.usage)
    return events, None


def has_token(events: bytes) -> bool:
    """Whether any of these events carries part of an answer, or is the last."""
    return any(
        told.type.endswith(".delta") or told.type in _ENDS or told is _UNKNOWN for told in _all(events)
    )


def error_in(events: bytes) -> str | None:
    """The message of an error event among these, if there is one. (vLLM sends none: it breaks off.)"""
    if not any(mark in events for mark in _ERROR_MARKS):
        return None
    for told in _all(events):
        if told.type == "response.failed":
            error = told.response.error if told.response else None
            return _message(error, None)
        if told.type == "error" or (not told.type and told.error is not None):
            return _message(told.error, told.message)
    return None


def body_usage(body: bytes) -> Usage | None:
    """Usage of a whole answer, if it tells one."""
    try:
        return _usage(_answer.decode(body).usage)
    except msgspec.MsgspecError:
        return None


def _all(events: bytes) -> Iterator[_Event]:
    for event in events.split(b"\n\n")[:-1]:
        if (told := _decoded(event)) is not None:
            yield told


def _decoded(event: bytes) -> _Event | None:
    """None for a comment; `_UNKNOWN` for a shape that we do not know."""
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if at == 0 and not event.startswith(b"data:"):
        return None
    data = event[at + 5 :]
    if data.strip() == b"[DONE]":
        return None
    try:
        return _event.decode(data)
    except msgspec.MsgspecError:
        return _UNKNOWN


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.input_tokens_details
    return Usage(usage.input_tokens, usage.output_tokens, (details.cached_tokens or 0) if details else 0)


def _message(error: _ErrorBody | str | None, message: str | None) -> str:
    said = error if isinstance(error, str) else error.message if error else message
    return (said or message or "")[:300]
