"""What a client may send, checked before anything else happens. The body is decoded for the checks alone; the
engine gets the caller's own bytes wherever nothing had to be changed.

Requests of a plain form are read by `api.plain`. What that does not take comes by the careful road: decoded
into dicts and lists, where a name that stands twice is seen, and checked against the type then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, structs

from api import chat, plain, responses, sampling, text, tokens, validation
from api.chat import ChatCompletion
from api.errors import ApiError, invalid, no_such_model
from api.plain import Key, key_hook
from api.responses import CreateResponse
from api.sampling import StreamOptions
from api.text import Completion, Embedding
from api.tokens import Detokenize, Tokenize
from api.validation import converted
from gputorrent.chosen import settings
from jobs import prompt
from jobs.interactive import Request, tenant_of
from jobs.prompt import NO_PREFIX
from worker_agent.contract import MODEL_NAME, RESPONSES

T = TypeVar("T")

DEEPEST: Final = 64
"""How deep lists and objects may lie in each other. Programs that walk a schema do so by recursion."""


class Schema(NamedTuple):
    """What one path takes: its type, the names of its parameters, and what the type does not say."""

    type: type[Any]
    known: frozenset[str]
    check: Callable[[Any], None]


def _schema(kind: type[Any], check: Callable[[Any], None]) -> Schema:
    return Schema(kind, frozenset(field.encode_name for field in msgspec.structs.fields(kind)), check)


EMBEDDINGS: Final = "/v1/embeddings"
SCHEMAS: Final[dict[str, Schema]] = {
    "/v1/completions": _schema(Completion, text.check),
    "/v1/chat/completions": _schema(ChatCompletion, chat.check),
    RESPONSES: _schema(CreateResponse, responses.check),
    EMBEDDINGS: _schema(Embedding, text.check_embedding),
    "/tokenize": _schema(Tokenize, tokens.check),
    "/detokenize": _schema(Detokenize, tokens.check_detokenize),
}
"""The paths whose requests go to an engine."""
_SAMPLED: Final = (ChatCompletion, Completion)
DEFERRABLE: Final = tuple(path for path in SCHEMAS if path.startswith("/v1/"))
"""Those that take a model's time, and so may be asked for as jobs."""


_decode = msgspec.json.Decoder(dict[Key, Any], dec_hook=key_hook).decode

_USAGE = b'"stream_options":{"include_usage":true},'
_FORGET = b'"store":false,'


def parse(path: str, body: bytes, *, key: int | None) -> Request:
    """A request from its body. Raises `ApiError` 400 naming the parameter, 404 for a name no model can have.

    For a stream the engine is always asked for its usage, which the ledger needs; the caller sees it only
    if it asked too.
    """
    fields: dict[str, Any] | None = None
    wanted = plain.read(path, body)
    if wanted is None:
        fields, wanted = _careful(path, body)
    SCHEMAS[path].check(wanted)
    if not MODEL_NAME.fullmatch(wanted.model):
        raise no_such_model(wanted.model)
    if isinstance(wanted, _SAMPLED):
        return _sampled(wanted, path, fields, body, key)
    if isinstance(wanted, Embedding):
        return _embedding(wanted, path, body, key)
    if isinstance(wanted, CreateResponse):
        return _response(wanted, path, fields or {}, body, key)
    return Request(path, wanted.model, body, stream=False, key=key, answer_tokens=0, metered=False)


def _careful(path: str, body: bytes) -> tuple[dict[str, Any], Any]:
    """The parameters of a body as they came, and as the path's type has them. Raises `ApiError` 400 for
    whatever is wrong with them, as far as the type says it."""
    schema = SCHEMAS[path]
    fields = _fields(body)
    if unknown := fields.keys() - schema.known:
        _check_unknown(unknown, fields)
    wanted = converted(fields, schema.type)
    if _deeper_than(DEEPEST, fields):
        raise ApiError("nested_too_deeply", f"The body is nested deeper than {DEEPEST} levels.")
    return fields, wanted


def convert(body: bytes, kind: type[T]) -> T:
    """Any other body by its type. Raises `ApiError` 400 naming the parameter."""
    return converted(_fields(body), kind)


def _sampled(
    wanted: ChatCompletion | Completion,
    path: str,
    fields: dict[str, Any] | None,
    body: bytes,
    key: int | None,
) -> Request:
    """A text or chat completion. `fields` are its parameters as they came, None for one of plain form."""
    sampling.check(wanted)
    stream = bool(wanted.stream)
    options = wanted.stream_options
    hide_usage = stream and not (isinstance(options, StreamOptions) and options.include_usage)
    sent = body
    if wanted.stop_sequences is not UNSET or (hide_usage and options is not UNSET):
        sent = _rewritten(fields or _fields(body), hide_usage)
    elif hide_usage:
        sent = _with(_USAGE, body)
    # The most that the caller allows, all answers together; None where it says nothing.
    most, prompts = wanted.max_tokens, 1
    if isinstance(wanted, ChatCompletion):
        most = wanted.max_completion_tokens or most
        if fields is None:
            messages = [(m.role, m.content) for m in wanted.messages]
        else:
            messages = [(m["role"], m.get("content")) for m in fields["messages"]]
        tokens_wanted = prompt.chat_tokens([content for _, content in messages], most or 0)
    else:
        prompts = _prompts(wanted.prompt)
        tokens_wanted = prompt.text_tokens(wanted.prompt, most or 0)
    prefix = NO_PREFIX
    if settings.AFFINITY:
        tenant = tenant_of(key)
        if wanted.prompt_cache_key:
            prefix = prompt.of_cache_key(tenant, wanted.model, wanted.prompt_cache_key)
        elif isinstance(wanted, ChatCompletion):
            prefix = prompt.of_chat(tenant, wanted.model, messages)
        else:
            prefix = prompt.of_text(tenant, wanted.model, wanted.prompt)
    return Request(
        path,
        wanted.model,
        sent,
        stream,
        hide_usage,
        key,
        tokens_wanted=tokens_wanted,
        prefix=prefix,
        answer_tokens=None if most is None else most * (wanted.n or 1) * prompts,
        prompts=prompts,
    )


def _with(parameter: bytes, body: bytes) -> bytes:
    """The body of an object with one more parameter, before all others."""
    start = body.index(b"{") + 1
    return b"".join((body[:start], parameter, memoryview(body)[start:]))


def _prompts(given: Any) -> int:
    """How many there are in a parameter that takes one or several."""
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    return len(given) if several else 1


def _embedding(wanted: Embedding, path: str, body: bytes, key: int | None) -> Request:
    """Nothing is generated: no tokens of an answer are reserved, none need room in the context."""
    return Request(
        path,
        wanted.model,
        body,
        stream=False,
        key=key,
        tokens_wanted=prompt.input_tokens(wanted.input, wanted.truncate_prompt_tokens),
        answer_tokens=0,
        prompts=_prompts(wanted.input),
    )


def _response(
    wanted: CreateResponse, path: str, fields: dict[str, Any], body: bytes, key: int | None
) -> Request:
    """What is left out, and what is null, means the default. But vLLM takes no null for some, and a foreign
    server may keep what it is not told to forget."""
    if any(value is None for value in fields.values()):
        given = {name: value for name, value in fields.items() if value is not None}
        body = msgspec.json.encode({**given, "store": False})
    elif wanted.store is None:
        body = _with(_FORGET, body)
    turns = list(prompt.turns(wanted.instructions, wanted.input))
    most = wanted.max_output_tokens
    counted = () if wanted.truncation == "auto" else (content for _, content in turns)
    request = Request(
        path,
        wanted.model,
        body,
        bool(wanted.stream),
        key=key,
        tokens_wanted=prompt.chat_tokens(counted, most or 0),
        answer_tokens=most,
    )
    if not settings.AFFINITY:
        return request
    if wanted.prompt_cache_key:
        prefix = prompt.of_cache_key(request.tenant, wanted.model, wanted.prompt_cache_key)
    else:
        prefix = prompt.of_chat(request.tenant, wanted.model, turns)
    return structs.replace(request, prefix=prefix)


def _fields(body: bytes) -> dict[str, Any]:
    """The parameters of a body. Of two with one name engines would take the one or the other: refused."""
    try:
        pairs = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        said = validation.AT.sub("", str(e))[:200]
        if isinstance(e, RecursionError):
            raise ApiError("nested_too_deeply", f"The body is nested deeper than {DEEPEST} levels.") from None
        if said.startswith("Expected"):
            raise invalid(f"Invalid request: {said}.") from None
        raise invalid(f"The body is not valid JSON: {said}", code="invalid_json") from None
    fields = {str(key): value for key, value in pairs.items()}
    if len(fields) != len(pairs):
        names = list(map(str, pairs))
        twice = next(name for name in names if names.count(name) > 1)[:80]
        raise invalid(f"Duplicate parameter: '{twice}'.", code="duplicate_parameter", param=twice)
    return fields


def _check_unknown(unknown: set[str], fields: dict[str, Any]) -> None:
    for name in sorted(unknown - settings.EXTRA_PARAMETERS):
        if fields[name] is not None or name not in sampling.REFUSED:  # null: a client that sends all it knows
            raise sampling.refused(name)


def _deeper_than(most: int, fields: dict[str, Any]) -> bool:
    # Prompts have types that bound their depth, and may have a million items; a list of objects has neither.
    level = [
        v
        for name, v in fields.items()
        if v.__class__ in _NESTS
        and (name not in _FLAT or (v and v.__class__ is list and v[0].__class__ is dict))
    ]
    for _ in range(most - 1):
        if not level:
            return False
        level = [
            v
            for box in level
            for v in (box.values() if box.__class__ is dict else box)
            if v.__class__ in _NESTS
        ]
    return bool(level)


_NESTS: Final = frozenset({dict, list})
_FLAT: Final = frozenset({"prompt", "input"})


def _rewritten(fields: dict[str, Any], ask_for_usage: bool) -> bytes:
    if (stop := fields.pop("stop_sequences", None)) is not None:
        fields["stop"] = stop
    if ask_for_usage:
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    return msgspec.json.encode(fields)
