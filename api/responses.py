"""``POST /v1/responses``: what its body may hold.

Nothing is kept between requests: vLLM would hold it in the memory of one engine, and the next request may go
to another node. What would need it is refused; the whole conversation comes in `input`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from api import chat, sampling
from api.errors import ApiError, invalid
from api.sampling import (
    Alternatives,
    AsObject,
    AsText,
    Bias,
    Metadata,
    Name,
    Penalty,
    Probability,
    Repetition,
    Salt,
    Seed,
    ShortText,
    Stop,
    StructuredOutputs,
    Temperature,
    TokenIds,
    Tokens,
)
from api.validation import converted

MOST_ITEMS: Final = 10_000
Count = Annotated[int, Meta(ge=1, le=1_000_000)]

# -- items of the input ------------------------------------------------------------------------------------
# Their parts know their fields and take no others, as in a chat. An item may have more: programs send the
# items of an answer back as they got them.


class InputText(Struct, tag="input_text", tag_field="type", forbid_unknown_fields=True):
    text: str
    prompt_cache_breakpoint: Any = None


class InputImage(Struct, tag="input_image", tag_field="type", forbid_unknown_fields=True):
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    prompt_cache_breakpoint: Any = None


class OutputText(Struct, tag="output_text", tag_field="type", forbid_unknown_fields=True):
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Parts = Annotated[list[InputText | InputImage], Meta(min_length=1, max_length=2048)]


class Asked(Struct):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | Parts


class Answered(Struct):
    """vLLM wants the `type` of a message that has parts, and fails at one that has none."""

    role: Literal["assistant"]
    content: str | Annotated[list[OutputText | InputText], Meta(min_length=1, max_length=2048)]
    type: Literal["message"] | None = None


class FunctionCall(Struct):
    call_id: ShortText
    name: Name
    arguments: str


class CustomCall(Struct):
    call_id: ShortText
    name: Name
    input: str


class CallOutput(Struct):
    call_id: ShortText
    output: str | Parts


class SummaryText(Struct, tag="summary_text", tag_field="type", forbid_unknown_fields=True):
    text: str


class ReasoningText(Struct, tag="reasoning_text", tag_field="type", forbid_unknown_fields=True):
    text: str


class Thought(Struct):
    summary: list[SummaryText]
    content: list[ReasoningText] | None = None


_ITEMS: Final[dict[Any, type[Any]]] = {
    "message": Asked,
    "function_call": FunctionCall,
    "function_call_output": CallOutput,
    "custom_tool_call": CustomCall,
    "custom_tool_call_output": CallOutput,
    "reasoning": Thought,
}


# -- tools and the form of the answer ----------------------------------------------------------------------


class FunctionTool(Struct, tag="function", tag_field="type"):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AnyText(Struct, tag="text", tag_field="type"):
    pass


class CustomTool(Struct, tag="custom", tag_field="type"):
    name: Name
    description: str | None = None
    format: AnyText | None = None


class Namespace(Struct, tag="namespace", tag_field="type"):
    name: Name
    description: str
    tools: Annotated[list[FunctionTool | CustomTool], Meta(min_length=1, max_length=128)]


class ChosenFunction(Struct, tag="function", tag_field="type"):
    name: Name


class ChosenCustom(Struct, tag="custom", tag_field="type"):
    name: Name


class SchemaFormat(Struct, tag="json_schema", tag_field="type", forbid_unknown_fields=True):
    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextForm(Struct, forbid_unknown_fields=True):
    format: AsText | AsObject | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, forbid_unknown_fields=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class EventOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class CreateResponse(Struct, kw_only=True):
    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MOST_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: Alternatives | None = None
    text: TextForm | None = None
    reasoning: Reasoning | None = None
    tools: Annotated[list[FunctionTool | CustomTool | Namespace], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | ChosenCustom | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Count | None = None
    include: (
        list[
            Literal[
                "message.output_text.logprobs",
                "reasoning.encrypted_content",
                "code_interpreter_call.outputs",
                "computer_call_output.output.image_url",
                "file_search_call.results",
                "message.input_image.image_url",
            ]
        ]
        | None
    ) = None
    truncation: Literal["auto", "disabled"] | None = None
    # Nothing is kept: false, or null.
    store: bool | None = None
    background: bool | None = None
    previous_response_id: ShortText | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    # OpenAI's that change nothing about the answer here
    metadata: Metadata | None = None
    moderation: Any = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: ShortText | None = None
    safety_identifier: ShortText | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    user: ShortText | None = None
    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    stop: Stop | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    seed: Seed | None = None
    logit_bias: Bias | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    cache_salt: Salt | None = None
    watermarking: bool | None = None


_NOT_HERE: Final = {
    "store": "responses are not kept here; leave it out, or send false",
    "background": "responses are not kept here; send the request to POST /jobs instead",
    "previous_response_id": "responses are not kept here; send the whole conversation as 'input'",
    "conversation": "conversations are not kept here; send the whole of it as 'input'",
    "prompt": "prompts are not kept here; send 'instructions' and 'input'",
    "context_management": "the engine does not shorten conversations; 'truncation' cuts their beginning",
}


def check(wanted: CreateResponse) -> None:
    """What no type says. Raises `ApiError` 400."""
    for name, why in _NOT_HERE.items():
        if getattr(wanted, name) not in (None, False):
            raise ApiError("unsupported_parameter", f"Unsupported parameter: '{name}': {why}.", param=name)
    if isinstance(wanted.input, list):
        for at, item in enumerate(wanted.input):
            _check_item(item, f"input[{at}]")
    _check_tools(wanted)
    chat.check_template_kwargs(wanted.chat_template_kwargs)
    sampling.check_outputs(wanted.structured_outputs)
    sampling.check_salt(wanted.cache_salt)
    if wanted.stream_options is not None and not wanted.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")


def _check_item(item: dict[str, Any], at: str) -> None:
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in _ITEMS:
        why = "send the item itself: nothing is kept here" if kind == "item_reference" else "not offered here"
        shown = str(kind)[:80]
        raise invalid(f"Invalid value for '{at}.type': '{shown}': {why}.", param=f"{at}.type")
    if item.get("role") == "assistant" and kind == "message":
        answered = converted(item, Answered, at)
        if isinstance(answered.content, list) and answered.type is None:
            raise chat.missing(f"{at}.type")
        return
    found = converted(item, _ITEMS[kind], at)
    field = "output" if isinstance(found, CallOutput) else "content"
    parts = getattr(found, field, None)
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        if isinstance(part, InputImage):
            chat.check_url(part.image_url, f"{at}.{field}[{number}].image_url")


def _check_tools(wanted: CreateResponse) -> None:
    tools, choice = wanted.tools or [], wanted.tool_choice
    names = [tool.name for tool in tools]
    chat.check_names(names)
    if choice == "required" and not tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
    if not isinstance(choice, ChosenFunction | ChosenCustom) or choice.name in names:
        return
    if not any(isinstance(tool, Namespace) for tool in tools):  # whose names the engine knows how to join
        raise invalid(f"No tool is called '{choice.name}'.", param="tool_choice")
