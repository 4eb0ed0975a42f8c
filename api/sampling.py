"""The parameters that text and chat completions share: OpenAI's, and vLLM's own that are harmless.

Bounds are those of OpenAI's API reference, or of vLLM 0.32 where OpenAI has none; what depends on the model
(its context, its vocabulary) is left to the engine. `REFUSED` has what engines know and callers may not send.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from api.errors import ApiError, invalid

MOST_STOPS: Final = 4
"""OpenAI's limit, and vLLM's (VLLM_MAX_STOP_STRINGS): every stop string is looked for after every token."""

Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(gt=0, le=10)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
"""How many likely tokens are told beside the one chosen. 20 is OpenAI's limit, and vLLM's default."""
StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=MOST_STOPS)]
Bias = Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
TokenIds = Annotated[list[TokenId], Meta(max_length=1024)]
ShortText = Annotated[str, Meta(max_length=512)]
LongText = Annotated[str, Meta(max_length=65_536)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], ShortText], Meta(max_length=16)]
Salt = Annotated[str, Meta(min_length=1, max_length=128)]

REFUSED: Final[dict[str, str]] = {
    # OpenAI's, which no engine here honours. Ignored, they would give another answer than was asked for.
    "best_of": "vLLM does not offer it; use 'n' and choose yourself",
    "functions": "it was replaced by 'tools'",
    "function_call": "it was replaced by 'tool_choice'",
    "audio": "models here answer with text",
    "web_search_options": "models here do not search the web",
    # vLLM's, once.
    "guided_json": "vLLM no longer heeds it; use 'response_format' or 'structured_outputs'",
    "guided_regex": "vLLM no longer heeds it; use 'structured_outputs'",
    "guided_choice": "vLLM no longer heeds it; use 'structured_outputs'",
    "guided_grammar": "vLLM no longer heeds it; use 'structured_outputs'",
    "guided_decoding_backend": "vLLM no longer heeds it; use 'structured_outputs'",
    "guided_whitespace_pattern": "vLLM no longer heeds it; use 'structured_outputs'",
    # vLLM's, which would give callers power over a node or over each other.
    "chat_template": "it is a program that would run on the node",
    "mm_processor_kwargs": "it changes how much memory and time a node spends on an image",
    "media_io_kwargs": "it changes how much memory and time a node spends on an image",
    "prompt_embeds": "it holds tensors that a node would have to unpack",
    "kv_transfer_params": "it tells engines to exchange their caches",
    "ec_transfer_params": "it tells engines to exchange their caches",
    "vllm_xargs": "it is for extensions of the engine",
    "priority": "the coordinator decides whose turn it is",
    "request_id": "requests have the id of their job here",
    "session_id": "the coordinator chooses the node",
    "use_beam_search": "one such request does the work of many, unseen by the limits",
    "routed_experts_prompt_start": "it is for looking into the engine",
    # vLLM's, for paths that are not offered.
    "mm_payload": "it has a meaning on paths only that are not offered here",
    "return_mm_kwargs": "it has a meaning on paths only that are not offered here",
    "return_token_offsets": "it has a meaning on paths only that are not offered here",
}


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Struct, forbid_unknown_fields=True):
    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class AsText(Struct, tag="text", tag_field="type"):
    pass


class AsObject(Struct, tag="json_object", tag_field="type"):
    pass


class AsSchema(Struct, tag="json_schema", tag_field="type"):
    json_schema: JsonSchema


class AsTagged(Struct, tag="structural_tag", tag_field="type"):
    """vLLM's: parts of the answer follow schemas, between triggers."""


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's constraints on the answer; exactly one of the first six."""

    json: dict[str, Any] | LongText | None = None
    regex: Annotated[str, Meta(max_length=4096)] | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    grammar: LongText | None = None
    json_object: bool | None = None
    structural_tag: LongText | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Meta(max_length=512)] | None = None

    def constraints(self) -> int:
        kinds = (self.json, self.regex, self.choice, self.grammar, self.json_object, self.structural_tag)
        return sum(kind is not None for kind in kinds)


class Repetitions(Struct, forbid_unknown_fields=True):
    max_pattern_size: Annotated[int, Meta(ge=0, le=1024)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0, le=1024)] = 0
    min_count: Annotated[int, Meta(ge=0, le=100_000)] = 0


class Sampling(Struct, kw_only=True):
    """What every completion may ask for."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | UnsetType | None = UNSET
    n: Choices | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Stop | None = None
    stop_sequences: Stop | UnsetType | None = UNSET
    seed: Seed | None = None
    logit_bias: Bias | None = None
    user: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    response_format: AsText | AsObject | AsSchema | AsTagged | None = None
    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Repetition | None = None
    length_penalty: float | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=100_000_000)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    prompt_logprobs: Alternatives | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[StopText], Meta(max_length=128)] | None = None
    add_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    repetition_detection: Repetitions | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=100_000_000)] | None = None
    stream_interval: Annotated[int, Meta(ge=1, le=64)] | None = None
    cache_salt: Salt | None = None
    watermarking: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    echo: bool | None = None


def check(wanted: Sampling) -> None:
    """What no type says. Raises `ApiError` 400."""
    if wanted.stream_options is not UNSET and wanted.stream_options is not None and not wanted.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if wanted.prompt_logprobs and wanted.stream:
        raise invalid("'prompt_logprobs' is not available for a stream.", param="prompt_logprobs")
    if wanted.stop is not None and wanted.stop_sequences is not UNSET and wanted.stop_sequences is not None:
        raise invalid("Send 'stop' or 'stop_sequences', which mean the same.", param="stop_sequences")
    check_outputs(wanted.structured_outputs)
    check_salt(wanted.cache_salt)


def check_outputs(outputs: StructuredOutputs | None) -> None:
    """Raises `ApiError` 400 for more constraints than one, or none."""
    if outputs is not None and outputs.constraints() != 1:
        raise invalid(
            "'structured_outputs' takes exactly one of json, regex, choice, grammar, json_object and "
            "structural_tag.",
            param="structured_outputs",
        )


def check_salt(salt: str | None) -> None:
    """Raises `ApiError` 400 for a salt that vLLM does not take."""
    if salt is not None and set(salt) & set("@/\\\0"):
        raise invalid("'cache_salt' may not contain '@', '/', '\\' or NUL.", param="cache_salt")


def refused(name: str) -> ApiError:
    """The refusal of a parameter that no schema knows."""
    if why := REFUSED.get(name):
        return ApiError("unsupported_parameter", f"Unsupported parameter: '{name}': {why}.", param=name)
    shown = name[:80]
    return ApiError("unknown_parameter", f"Unknown parameter: '{shown}'.", param=shown)
