from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from api.schemas import parse
from jobs import prompt
from jobs.prompt import NO_PREFIX, Prefix

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

FIRST = [("system", "be brief"), ("user", "hello")]
SECOND = [*FIRST, ("assistant", "hi"), ("user", "and now?")]


def chat(messages: list[tuple[str, Any]], tenant: str = "1", model: str = "m") -> Prefix:
    return prompt.of_chat(tenant, model, messages)


def test_the_next_turn_of_a_chat_looks_for_what_this_one_keeps():
    first, second = chat(FIRST), chat(SECOND)
    assert len(first.keep) == 1
    assert first.keep[0] in second.look
    assert second.look[0] == second.keep[0]


def test_the_longest_beginning_comes_first():
    third = chat([*SECOND, ("assistant", "x"), ("user", "y")])
    assert third.look.index(chat(SECOND).keep[0]) < third.look.index(chat(FIRST).keep[0])


@pytest.mark.parametrize(
    "other",
    [
        chat(FIRST, tenant="2"),
        chat(FIRST, model="n"),
        chat([("system", "be brief"), ("user", "hello!")]),
        chat([("user", "be brief"), ("user", "hello")]),
        chat([("system", "be briefu"), ("ser", "hello")]),
        chat([("system", "be brief\0user\0hello")]),
    ],
)
def test_what_differs_has_another_name(other):
    assert not set(other.look) & set(chat(FIRST).keep)


def test_a_shared_system_prompt_alone_brings_nobody_together():
    assert not set(chat([FIRST[0], ("user", "something else")]).look) & set(chat(FIRST).keep)


def test_long_messages_are_told_apart_by_their_ends_and_lengths():
    names = {chat([("user", text)]).keep for text in ["x" * 90_000, "x" * 90_001, "x" * 89_999 + "y"]}
    assert len(names) == 3


def test_images_are_part_of_the_name():
    def with_image(url: str) -> Prefix:
        parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        return chat([("user", parts)])

    assert with_image("data:a").keep != with_image("data:b").keep


def test_texts_are_known_by_their_first_blocks():
    long = "word " * 2000
    one, two = (prompt.of_text("1", "m", long + end) for end in ("one", "two"))
    assert len(one.keep) == 2
    assert one == two
    other = prompt.of_text("1", "m", long[:2000] + "other" + long)
    assert set(other.keep) & set(one.keep) == {one.keep[-1]}
    assert prompt.of_text("1", "m", "short") == NO_PREFIX
    assert prompt.of_text("1", "m", [long, long]) == NO_PREFIX
    assert prompt.of_text("1", "m", list(range(2000))).keep
    assert prompt.of_text("2", "m", long).keep != one.keep


def test_a_cache_key_says_itself_what_belongs_together():
    body = {"model": "m", "prompt_cache_key": "chat-7", "messages": [{"role": "user", "content": "a"}]}
    one = parse(CHAT, json.dumps(body).encode(), key=1).prefix
    body["messages"] = [{"role": "user", "content": "b"}]
    assert parse(CHAT, json.dumps(body).encode(), key=1).prefix == one
    assert parse(CHAT, json.dumps(body).encode(), key=2).prefix != one


def test_affinity_can_be_switched_off(settings):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]}).encode()
    assert parse(CHAT, body, key=1).prefix.look
    settings.AFFINITY = False
    assert parse(CHAT, body, key=1).prefix == NO_PREFIX


# -- length --------------------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 400}]}, 101),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50}, 150),
        (
            CHAT,
            {"messages": [{"role": "user", "content": ""}], "max_completion_tokens": 60, "max_tokens": 50},
            60,
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, IMAGE]}]}, 11),
        (TEXT, {"prompt": "x" * 40, "max_tokens": 0}, 11),
        (TEXT, {"prompt": [7] * 33}, 34),
        (TEXT, {"prompt": [[7] * 33, [7] * 55]}, 56),
        (TEXT, {"prompt": ["x" * 40, "x" * 80]}, 21),
        (TEXT, {"prompt": "é" * 40}, 21),
        (EMBEDDINGS, {"input": "x" * 40}, 10),
        (EMBEDDINGS, {"input": [7] * 33}, 33),
        (EMBEDDINGS, {"input": [[7] * 33, [7] * 55]}, 55),
        (EMBEDDINGS, {"input": ["x" * 400, "x"], "truncate_prompt_tokens": 64}, 64),
        (EMBEDDINGS, {"input": ["x" * 400, "x"], "truncate_prompt_tokens": -1}, 0),
    ],
)
def test_the_context_a_request_needs_at_least(path, fields, tokens):
    body = json.dumps({"model": "m", **fields}).encode()
    assert parse(path, body, key=1).tokens_wanted == tokens
    assert prompt.tokens_of_body(body) == tokens


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "url", "image_url", "content", "messages", "prompt"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(ANY)
def test_no_shape_of_a_prompt_breaks_anything(shape):
    chat([("user", shape)])
    prompt.of_text("1", "m", shape)
    assert prompt.chat_tokens([shape], 5) >= 5
    assert prompt.text_tokens(shape, 0) >= 1
    assert prompt.tokens_of_body(json.dumps(shape).encode()) >= 0


@given(st.binary(max_size=30))
def test_no_bytes_break_the_estimate(body):
    assert prompt.tokens_of_body(body) >= 0
