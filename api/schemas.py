"""What a client may send, checked before anything else happens. Only what routing and accounting need, and
what every engine would refuse anyway, is decoded; the rest of the body passes as bytes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from api.errors import ApiError, invalid
from jobs.interactive import Request
from worker_agent.contract import MODEL_NAME

Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Stop = str | Annotated[list[str], Meta(max_length=64)]


class StreamOptions(Struct):
    include_usage: bool | None = None


class _Common(Struct, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | UnsetType | None = UNSET
    max_tokens: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None
    n: Choices | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Stop | None = None
    seed: int | None = None
    user: str | None = None


class Completion(_Common):
    """``POST /v1/completions``."""

    prompt: str | list[Any]
    echo: bool | None = None


class Message(Struct):
    role: str
    content: Any = None


class ChatCompletion(_Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None


SCHEMAS: Final[dict[str, type[_Common]]] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
}
_decoders = {path: msgspec.json.Decoder(schema) for path, schema in SCHEMAS.items()}
_any = msgspec.json.Decoder()

_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_USAGE = b'"stream_options":{"include_usage":true},'


def parse(path: str, body: bytes, *, key: int | None) -> Request:
    """A completion request from its body. Raises `ApiError` 400 naming the parameter.

    For a stream the engine is always asked for its usage, which the ledger needs; the caller sees it only
    if it asked too.
    """
    try:
        wanted = _decoders[path].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise _refused(e) from None
    if not MODEL_NAME.fullmatch(wanted.model):
        raise _no_model(wanted.model)
    stream = bool(wanted.stream)
    asked = isinstance(wanted.stream_options, StreamOptions)
    if asked and not stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    hide_usage = False
    if stream:
        shown = asked and bool(wanted.stream_options.include_usage)  # type: ignore[union-attr]
        hide_usage = not shown
        if not shown:
            body = _with_usage(body, has_options=wanted.stream_options is not UNSET)
    answer = wanted.max_tokens or 0
    if isinstance(wanted, ChatCompletion):
        answer, prompts = wanted.max_completion_tokens or answer, 1
    else:
        prompts = _prompts(wanted)
    answer *= (wanted.n or 1) * prompts
    return Request(path, wanted.model, body, stream, hide_usage, key, answer_tokens=answer)


def _prompts(wanted: _Common) -> int:
    """How many answers to one choice each a text completion asks for."""
    prompt = wanted.prompt if isinstance(wanted, Completion) else ""
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return len(prompt) if several else 1


def _with_usage(body: bytes, *, has_options: bool) -> bytes:
    if not has_options:
        start = body.index(b"{") + 1
        return body[:start] + _USAGE + body[start:]
    whole = _any.decode(body)
    whole["stream_options"] = {**(whole["stream_options"] or {}), "include_usage": True}
    return msgspec.json.encode(whole)


def _no_model(model: str) -> ApiError:
    return ApiError(
        404,
        "invalid_request_error",
        "model_not_found",
        f"The model `{model[:200]}` does not exist: no node offers it.",
        param="model",
    )


def _refused(error: Exception) -> ApiError:
    message = str(error)
    if missing := _MISSING.search(message):
        where = _AT.search(message)
        param = f"{where[1]}.{missing[1]}" if where and where[1] else missing[1]
        return invalid(
            f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
        )
    if isinstance(error, msgspec.ValidationError):
        where = _AT.search(message)
        param = where[1] if where else None
        said = _AT.sub("", message)
        said = f"Invalid value for '{param}': {said}." if param else f"Invalid request: {said}."
        return invalid(said, code="invalid_value", param=param or None)
    return invalid(f"The body is not valid JSON: {message[:200]}", code="invalid_json")
