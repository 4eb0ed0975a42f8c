"""What routing wants to know of a prompt: how long it is at least, and by which beginnings it may be known
again. Pure; looks at decoded JSON of any shape, and keeps nothing of it but hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from worker_agent.contract import RESPONSES

BYTES_PER_TOKEN: Final = 4
"""Of English text in today's vocabularies. Most other text takes more tokens, so this is a lower bound, near
enough; routing only avoids nodes by it, engines decide."""

BLOCKS: Final = (1024, 4096, 16384, 65536)
"""Lengths in bytes of the beginnings of a text by which it is known. A shared beginning shorter than that is
read again sooner than anybody could queue for it."""

_HASH_BYTES: Final = 8
_MOST_MESSAGES: Final = 1024
_MOST_OF_ONE: Final = 1024
"""Bytes of one message that are hashed: half from its beginning, half from its end, and its length."""

_HALF: Final = _MOST_OF_ONE // 2

_LOOK_BACK: Final = 64
"""Messages that one turn of a chat may add: an answer, tool calls and their results, the next question."""


_CONTENTS: Final = ("content", "output", "arguments", "input", "summary")
"""Where the items of a response have what the model reads."""


class Prefix(Struct, frozen=True, gc=False):
    """The names of a prompt's beginnings: `look` them up in this order, and `keep` those for the next one."""

    look: tuple[bytes, ...] = ()
    keep: tuple[bytes, ...] = ()


NO_PREFIX: Final = Prefix()


def of_cache_key(tenant: str, model: str, cache_key: str) -> Prefix:
    """The caller says itself what belongs together (`prompt_cache_key`)."""
    h = _seeded("key", tenant, model)
    h.update(_digestible(cache_key))
    name = h.digest()
    return Prefix((name,), (name,))


def of_chat(tenant: str, model: str, messages: Sequence[tuple[str, Any]]) -> Prefix:
    """`messages` are pairs of role and content. A chat is known by all its messages up to some point; the
    next turn begins with all of this one's."""
    h = _seeded("chat", tenant, model)
    messages = messages[:_MOST_MESSAGES]
    unnamed = len(messages) - _LOOK_BACK
    if unnamed > 0:
        h.update(b"".join([_hashed(role, content) for role, content in messages[:unnamed]]))
        messages = messages[unnamed:]
    names = []
    for role, content in messages:
        h.update(_hashed(role, content))
        names.append(h.digest())
    names.reverse()
    return Prefix(tuple(names), tuple(names[:1]))


def _hashed(role: str, content: Any) -> bytes:
    """What one message adds to the name of a chat."""
    if content.__class__ is not str:
        return f"\0{len(role)} {role}".encode() + b"".join(map(_digestible, pieces(content)))
    length = len(content)  # what `_digestible` does, for nearly all messages and so without calling it
    if length > _MOST_OF_ONE:
        content = content[:_HALF] + content[-_HALF:]
    return f"\0{len(role)} {role}{length} {content}".encode()


def turns(instructions: str | None, given: Any) -> Iterator[tuple[str, Any]]:
    """What is asked of `/v1/responses` as the messages of a chat: pairs of role (or kind) and content."""
    if instructions:
        yield "instructions", instructions
    if isinstance(given, str):
        yield "user", given
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            content = next((item[name] for name in _CONTENTS if item.get(name)), None)
            yield str(item.get("role") or item.get("type")), content


def of_text(tenant: str, model: str, prompt: Any) -> Prefix:
    """Known by its first bytes, in a few lengths. Several prompts in one request, and short ones, are not."""
    if isinstance(prompt, str):
        data = prompt[: BLOCKS[-1]].encode()[: BLOCKS[-1]]
    elif _are_tokens(prompt):
        data = msgspec.json.encode(prompt[: BLOCKS[-1] // 4])[: BLOCKS[-1]]
    else:
        return NO_PREFIX
    h, done, names = _seeded("text", tenant, model), 0, []
    for length in BLOCKS:
        if length > len(data):
            break
        h.update(data[done:length])
        done = length
        names.append(h.digest())
    names.reverse()
    return Prefix(tuple(names), tuple(names))


def _seeded(kind: str, tenant: str, model: str) -> Any:
    """Tenants do not meet: what one asked must not be told by where another's request goes."""
    return hashlib.blake2b(f"{kind}\0{tenant}\0{model}\0".encode(), digest_size=_HASH_BYTES)


def _digestible(piece: str) -> bytes:
    """With its length, so that no text can pass for two."""
    length = len(piece)
    if length > _MOST_OF_ONE:
        piece = piece[:_HALF] + piece[-_HALF:]
    return f"{length} {piece}".encode()


def pieces(content: Any) -> Iterable[str]:
    """The text of a message, and what stands for its other parts (an image's address, which may be all of
    the image)."""
    if isinstance(content, str):
        return (content,)
    return _pieces_of_parts(content) if isinstance(content, list) else ()


def _pieces_of_parts(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        if not isinstance(part, dict):
            continue
        for value in part.values():
            inner = value.get("url") or value.get("data") if isinstance(value, dict) else value
            if isinstance(inner, str):
                yield inner


# -- length --------------------------------------------------------------------------------------------


def chat_tokens(contents: Iterable[Any], max_tokens: int) -> int:
    """Tokens of context that a chat needs at least, its answer included. Images and sound count nothing:
    what they take depends on the model."""
    return sum(map(_text_bytes, contents)) // BYTES_PER_TOKEN + max(1, max_tokens)


def text_tokens(prompt: Any, max_tokens: int) -> int:
    """The same of a text prompt; one in tokens is exact, and of several the longest counts."""
    return _prompt_tokens(prompt) + max(1, max_tokens)


def input_tokens(given: Any, truncated: int | None = None) -> int:
    """The same of what is to be embedded: the longest input, and no answer. `truncated` is the length that
    the engine is asked to cut inputs to (-1: to the context, whatever that is)."""
    tokens = _prompt_tokens(given)
    if truncated is None:
        return tokens
    return min(tokens, truncated) if truncated >= 0 else 0


def _prompt_tokens(prompt: Any) -> int:
    if isinstance(prompt, str):
        return _length(prompt) // BYTES_PER_TOKEN
    if not isinstance(prompt, list):
        return 0
    return len(prompt) if _are_tokens(prompt) else max(map(_prompt_tokens, prompt), default=0)


def _are_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _text_bytes(content: Any) -> int:
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content) * 2
    if not isinstance(content, list):
        return 0
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return sum(_length(text) for text in texts if isinstance(text, str))


def _length(text: str) -> int:
    """Bytes of UTF-8; a text that is not ASCII is not encoded only to be measured."""
    return len(text) if text.isascii() else len(text) * 2


def tokens_of_body(body: bytes, path: str = "") -> int:
    """Of a request that was checked when it came, from its body alone; 0 if it cannot be told."""
    try:
        whole = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    if not isinstance(whole, dict):
        return 0
    wanted = whole.get("max_completion_tokens") or whole.get("max_tokens") or whole.get("max_output_tokens")
    most = wanted if isinstance(wanted, int) else 0
    if path == RESPONSES:
        cut = whole.get("truncation") == "auto"
        return chat_tokens(
            () if cut else (c for _, c in turns(whole.get("instructions"), whole.get("input"))), most
        )
    if isinstance(messages := whole.get("messages"), list):
        return chat_tokens((m.get("content") for m in messages if isinstance(m, dict)), most)
    if "input" in whole:
        shortened = whole.get("truncate_prompt_tokens")
        return input_tokens(whole["input"], shortened if isinstance(shortened, int) else None)
    return text_tokens(whole.get("prompt"), most)
