"""``POST /v1/chat/completions``: what its body may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Protocol

from msgspec import Meta, Struct

from api import sampling
from api.errors import ApiError, invalid
from api.sampling import Alternatives, Metadata, Name, Sampling, ShortText, Tokens
from gputorrent.chosen import settings

# -- parts of a message ----------------------------------------------------------------------------------
# They know their fields and take no others: an engine would look for a URL in any part that has a `uuid`.


class Text(Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    text: str
    prompt_cache_breakpoint: Any = None
    cache_control: Any = None  # other APIs' hint, which clients that speak to several leave there


class Refusal(Struct, tag="refusal", tag_field="type", forbid_unknown_fields=True):
    refusal: str


class Thinking(Struct, tag="thinking", tag_field="type", forbid_unknown_fields=True):
    thinking: str
    closed: bool | None = None


class Url(Struct, forbid_unknown_fields=True):
    url: str
    detail: ShortText | None = None


class Image(Struct, tag="image_url", tag_field="type", forbid_unknown_fields=True):
    image_url: Url
    prompt_cache_breakpoint: Any = None
    cache_control: Any = None


class AudioUrl(Struct, tag="audio_url", tag_field="type", forbid_unknown_fields=True):
    audio_url: Url


class VideoUrl(Struct, tag="video_url", tag_field="type", forbid_unknown_fields=True):
    video_url: Url


class Sound(Struct, forbid_unknown_fields=True):
    data: str
    format: ShortText


class Audio(Struct, tag="input_audio", tag_field="type", forbid_unknown_fields=True):
    input_audio: Sound
    prompt_cache_breakpoint: Any = None


Part = Text | Refusal | Thinking | Image | AudioUrl | VideoUrl | Audio
_BY_URL: Final = {Image: "image_url", AudioUrl: "audio_url", VideoUrl: "video_url"}


# -- messages and tools ----------------------------------------------------------------------------------


class Called(Struct):
    name: str
    arguments: str


class ToolCall(Struct):
    id: str
    function: Called
    type: Literal["function"] = "function"


class Message(Struct):
    """Fields beyond these pass: programs send an answer's message back as they got it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(max_length=2048)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: ShortText | None = None


class Function(Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: Function
    type: Literal["function"]


class Chosen(Struct):
    name: Name


class NamedTool(Struct):
    function: Chosen
    type: Literal["function"] = "function"


class ChatCompletion(Sampling, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ShortText | None = None
    # OpenAI's that change nothing about the answer here
    metadata: Metadata | None = None
    modalities: list[Literal["text"]] | None = None
    moderation: Any = None
    prediction: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: ShortText | None = None
    safety_identifier: ShortText | None = None
    service_tier: ShortText | None = None
    store: bool | None = None
    verbosity: ShortText | None = None
    # vLLM's
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, str]], Meta(max_length=1024)] | None = None
    include_reasoning: bool | None = None
    return_prompt_text: bool | None = None


class Templated(Protocol):
    """What the model's template is told."""

    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


def check(wanted: ChatCompletion) -> None:
    """What no type says. Raises `ApiError` 400."""
    check_messages(wanted.messages)
    if wanted.top_logprobs and not wanted.logprobs:
        raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    if wanted.logprob_token_ids and not wanted.logprobs:
        raise invalid(
            "'logprob_token_ids' is only allowed when 'logprobs' is true.", param="logprob_token_ids"
        )
    check_template(wanted)
    if wanted.tools is not None or wanted.tool_choice is not None:
        _check_tools(wanted)


def check_messages(messages: Sequence[Message]) -> None:
    """What no type says of them. Raises `ApiError` 400."""
    for at, message in enumerate(messages):
        content = message.content
        if content.__class__ is list:
            _check_parts(at, message)
        elif content is None and message.role not in {"assistant", "function"}:
            raise missing(f"messages[{at}].content")
        if message.role == "tool" and message.tool_call_id is None:
            raise missing(f"messages[{at}].tool_call_id")


def check_template(wanted: Templated) -> None:
    """Raises `ApiError` 400 for what contradicts itself, and for a template of the caller's own."""
    if wanted.continue_final_message and wanted.add_generation_prompt:
        raise invalid(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.",
            param="continue_final_message",
        )
    check_template_kwargs(wanted.chat_template_kwargs)


def check_template_kwargs(given: dict[str, Any] | None) -> None:
    """Raises `ApiError` 400 for a template of the caller's own."""
    for name in ("chat_template", "tokenize"):
        if given and name in given:
            raise sampling.refused("chat_template")


def _check_parts(at: int, message: Message) -> None:
    if not isinstance(message.content, list):
        return
    for number, part in enumerate(message.content):
        if field := _BY_URL.get(part.__class__):
            check_url(getattr(part, field).url, f"messages[{at}].content[{number}].{field}.url")


def check_url(url: str, param: str) -> None:
    """Raises `ApiError` 400 for an address that a node would have to fetch."""
    scheme = url[:8].lower()
    if scheme.startswith("data:"):
        return
    if settings.ALLOW_URLS and scheme.startswith(("http://", "https://")):
        return
    raise ApiError(
        "url_not_allowed",
        "Nodes fetch nothing from addresses that callers name: send the data itself, as "
        "'data:image/png;base64,...'.",
        param=param,
    )


def check_names(names: Sequence[str]) -> None:
    """Raises `ApiError` 400 where two tools have the same."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(f"Two tools are called '{twice}'.", param="tools")


def _check_tools(wanted: ChatCompletion) -> None:
    names = [tool.function.name for tool in wanted.tools or ()]
    check_names(names)
    choice = wanted.tool_choice
    if choice is not None and choice != "none" and not names:
        raise invalid("'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise invalid(f"No tool is called '{choice.function.name}'.", param="tool_choice")


def missing(param: str) -> ApiError:
    """The refusal of a request without this parameter."""
    message = f"Missing required parameter: '{param}'."
    return invalid(message, code="missing_required_parameter", param=param)
