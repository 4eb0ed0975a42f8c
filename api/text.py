"""``POST /v1/completions`` and ``POST /v1/embeddings``: the prompt is a text, token ids, or several."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from api.errors import invalid
from api.sampling import Alternatives, Salt, Sampling, ShortText, TokenId

MOST_PROMPTS: Final = 1024
"""Prompts in one request, and answers to all of them: vLLM's limit (VLLM_MAX_COMPLETION_PROMPTS)."""
MOST_INPUTS: Final = 2048
"""OpenAI's limit on the inputs of one request for embeddings."""

_FORMS: Final[dict[type, Any]] = {
    str: list[str],
    int: list[TokenId],
    list: list[Annotated[list[TokenId], Meta(min_length=1)]],
}


class Completion(Sampling, kw_only=True):
    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None
    logprobs: Alternatives | None = None
    suffix: str | None = None


class Embedding(Struct, kw_only=True):
    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    user: ShortText | None = None
    # vLLM's
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=100_000_000)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    cache_salt: Salt | None = None


def check(wanted: Completion) -> None:
    """What no type says. Raises `ApiError` 400."""
    prompts = _check_prompt(wanted.prompt, "prompt", MOST_PROMPTS)
    if prompts * (wanted.n or 1) > MOST_PROMPTS:
        raise invalid(f"{prompts} prompts with n={wanted.n} are more than {MOST_PROMPTS} answers.", param="n")
    if wanted.logprob_token_ids and wanted.logprobs is None:
        raise invalid("'logprob_token_ids' is only allowed with 'logprobs'.", param="logprob_token_ids")


def check_embedding(wanted: Embedding) -> None:
    """What no type says. Raises `ApiError` 400."""
    _check_prompt(wanted.input, "input", MOST_INPUTS)


def _check_prompt(prompt: str | list[Any], param: str, most: int) -> int:
    """How many prompts there are. Raises `ApiError` 400 for none, an empty one, too many, or a mixture."""
    if not prompt:
        raise invalid(f"Invalid value for '{param}': it is empty.", param=param)
    if isinstance(prompt, str):
        return 1
    form = _FORMS.get(type(prompt[0]))
    if form is None:
        raise invalid(
            f"Invalid value for '{param}': expected a text, a list of texts, token ids, or a list of lists "
            "of token ids.",
            param=f"{param}[0]",
        )
    try:
        msgspec.convert(prompt, form)
    except msgspec.ValidationError as e:
        said, _, where = str(e).partition(" - at `$")
        param += where.rstrip("`")
        raise invalid(f"Invalid value for '{param}': {said}.", param=param) from None
    if type(prompt[0]) is int:
        return 1
    if len(prompt) > most:
        raise invalid(f"Invalid value for '{param}': more than {most} in one request.", param=param)
    return len(prompt)
