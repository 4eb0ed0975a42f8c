"""``POST /tokenize`` and ``POST /detokenize``: what a model's tokenizer makes of a text or a chat, and back.

They are vLLM's own paths, beside OpenAI's. A request goes to a node that has the model, as a completion does.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from api import chat
from api.chat import Message, Tool
from api.errors import invalid
from api.sampling import TokenId

_OF_A_CHAT: Final = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")


class Tokenize(Struct, kw_only=True):
    """Exactly one of `prompt` and `messages`; the last four go with messages alone."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None


class Detokenize(Struct, kw_only=True):
    model: str
    tokens: list[TokenId]


def check(wanted: Tokenize) -> None:
    """What no type says. Raises `ApiError` 400."""
    if wanted.messages is None:
        if wanted.prompt is None:
            raise chat.missing("prompt")
        for name in _OF_A_CHAT:
            if getattr(wanted, name) is not None:
                raise invalid(f"'{name}' is only allowed with 'messages'.", param=name)
        return
    if wanted.prompt is not None:
        raise invalid("Send 'prompt' or 'messages', not both.", param="messages")
    chat.check_messages(wanted.messages)
    chat.check_template(wanted)
    chat.check_names([tool.function.name for tool in wanted.tools or ()])


def check_detokenize(_: Detokenize) -> None:
    """Its type says everything."""
