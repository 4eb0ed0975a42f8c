"""Requests as most of them are: read in one go, straight into their types.

A form here takes less than the schema it is made of: nothing whose shape is the caller's (schemas of tools,
parts of a message), and no parameter or field that is not known. What it takes, `api.schemas` would take the
same way by the careful road. All else goes there, where alone it is said what is wrong with a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw

from api.chat import ChatCompletion, Message
from api.sampling import Sampling
from api.text import Completion, Embedding

LONGEST: Final = 16 * 1024
"""Bytes of a body for which this pays. It is looked through twice here, and once by the careful road."""


class PlainMessage(Message, forbid_unknown_fields=True):
    content: str | None = None
    tool_calls: None = None


class PlainChat(ChatCompletion, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[PlainMessage], Meta(min_length=1, max_length=10_000)]  # type: ignore[assignment]
    logit_bias: None = None
    response_format: None = None
    structured_outputs: None = None
    tools: None = None
    tool_choice: Literal["none", "auto", "required"] | None = None
    metadata: None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    chat_template_kwargs: None = None
    documents: None = None


class PlainCompletion(Completion, kw_only=True, forbid_unknown_fields=True):
    prompt: str
    logit_bias: None = None
    response_format: None = None
    structured_outputs: None = None


class PlainEmbedding(Embedding, kw_only=True, forbid_unknown_fields=True):
    input: str | list[str]


FORMS: Final[dict[str, type[Sampling | Embedding]]] = {
    "/v1/chat/completions": PlainChat,
    "/v1/completions": PlainCompletion,
    "/v1/embeddings": PlainEmbedding,
}
_DECODE: Final[dict[str, Callable[[bytes], Any]]] = {
    path: msgspec.json.Decoder(form).decode for path, form in FORMS.items()
}


class Key(str):
    """The name of a parameter as it came. Two of the same name differ, so none gets lost in a dict."""

    __slots__ = ()
    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__


key_hook: Final = type.__call__
"""Makes one for msgspec, which knows no `Key`. A function of Python's would be half of what reading costs."""


_members = msgspec.json.Decoder(dict[Key, Raw], dec_hook=key_hook).decode


def read(path: str, body: bytes) -> Any:
    """What a request asks for, by its type; None where it has no plain form, though nothing may be wrong with
    it. Never raises."""
    if len(body) > LONGEST or (decode := _DECODE.get(path)) is None:
        return None
    try:
        wanted = decode(body)
        keys = _members(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # The last of two with one name has been taken: that is for the careful road to refuse.
    return wanted if len(set(map(str, keys))) == len(keys) else None
