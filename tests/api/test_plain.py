"""The short way for plain requests and the careful road say the same of every body."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as deadlines
from hypothesis import strategies as st
from msgspec import inspect

from api import plain, schemas
from api.errors import ApiError
from jobs.interactive import Request
from tests.api import bad_requests

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def careful(path: str, body: bytes) -> Request | tuple[Any, ...]:
    with patch.object(plain, "LONGEST", -1):
        return said(path, body)


def said(path: str, body: bytes) -> Request | tuple[Any, ...]:
    """The request that a body becomes, or its refusal."""
    try:
        return schemas.parse(path, body, key=3)
    except ApiError as e:
        return e.status, e.code, e.param, e.message


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()


# -- what is plain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat(messages=[{"role": "system", "content": "é\n"}, {"role": "assistant"}], stream=True)),
        (
            CHAT,
            chat(messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}], stop=["a"], n=2, seed=-5),
        ),
        (CHAT, chat(stream=True, stream_options={"include_usage": True}, max_tokens=5, user="u", top_k=3)),
        (CHAT, chat(stream=True, stream_options={}, stop_sequences=["a"], max_completion_tokens=7)),
        (CHAT, chat(tools=None, response_format=None, logit_bias=None, prompt_cache_key="k")),
        (TEXT, b'{"model":"m","prompt":"hello","max_tokens":0,"echo":true,"stream":true}'),
        (TEXT, json.dumps({"model": "m", "prompt": "long " * 3000, "stop_sequences": "x"}).encode()),
        (EMBEDDINGS, b' {"model" : "m" , "input" : ["a", "b"] } '),
        (EMBEDDINGS, b'{"model":"m","input":"a","dimensions":5}'),
    ],
)
def test_an_everyday_request_goes_the_short_way_and_comes_out_the_same(path, body):
    assert plain.read(path, body) is not None
    request = said(path, body)
    assert isinstance(request, Request)
    assert request == careful(path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}])),
        (CHAT, chat(messages=[{"role": "user", "content": "x", "extra": {"a": [1]}}])),
        (CHAT, chat(chat_template_kwargs={"a": {"b": 1}})),
        (CHAT, chat(best_of=None)),
        (CHAT, chat(messages=[{"role": "user", "content": "x" * plain.LONGEST}])),
        (TEXT, b'{"model":"m","prompt":[1,2,3]}'),
        ("/tokenize", b'{"model":"m","prompt":"x"}'),
        ("/v1/responses", b'{"model":"m","input":"x"}'),
    ],
)
def test_what_is_not_plain_goes_the_careful_road(path, body):
    assert plain.read(path, body) is None
    assert isinstance(said(path, body), Request)


@pytest.mark.parametrize("form", plain.FORMS.values())
def test_nothing_in_a_plain_form_has_a_shape_of_the_callers(form):
    """So all of a body has been looked at, and none of it lies deeper than the careful road would let it."""

    def depth(kind: Any) -> int:
        if isinstance(kind, inspect.StructType):
            assert kind.forbid_unknown_fields, kind.cls
            return 1 + max(depth(field.type) for field in kind.fields)
        if isinstance(kind, inspect.UnionType):
            return max(map(depth, kind.types))
        if isinstance(kind, inspect.ListType):
            return 1 + depth(kind.item_type)
        plainest = (
            inspect.StrType, inspect.IntType, inspect.FloatType, inspect.BoolType, inspect.NoneType,
            inspect.LiteralType, inspect.CustomType,
        )  # fmt: skip
        assert isinstance(kind, plainest), kind
        assert not isinstance(kind, inspect.CustomType) or kind.cls is msgspec.UnsetType
        return 0

    assert depth(inspect.type_info(form)) < schemas.DEEPEST


@pytest.mark.parametrize(
    "value", [rb'"\ud800"', b'"\xff"', b"1e999", b"[" * 70 + b"]" * 70, b'{"a":1,"a":NaN}']
)
@pytest.mark.parametrize("field", [b"extra", b"tool_calls", b"name"])
def test_what_no_type_looks_at_is_looked_at_all_the_same(field, value):
    body = b'{"model":"m","messages":[{"role":"user","content":"x","' + field + b'":' + value + b"}]}"
    assert isinstance(said(CHAT, body), tuple)
    assert said(CHAT, body) == careful(CHAT, body)


# -- whatever comes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [bad for bad in bad_requests.ALL if bad.path in plain.FORMS], ids=str)
def test_of_every_bad_request_both_say_the_same(bad):
    assert said(bad.path, bad.body) == careful(bad.path, bad.body)


SCALARS = st.sampled_from(
    ["null", "true", "false", "0", "-0", "1", "1.0", "1e0", "-1", "2.5", "1e400", "NaN", "Infinity", "01",
     "1" * 30, "9223372036854775808", "x", "", '""', '"x"', '"m"', '"user"', '"tool"', '"auto"', '"text"',
     '"float"', '"left"', '"a/b"', '"é"', r'"\ud800"', r'"\ud83d\ude00"', r'"\u00e9"']
)  # fmt: skip
INNER = st.sampled_from(
    ["role", "content", "name", "tool_call_id", "tool_calls", "type", "text", "include_usage", "url", "x",
     r"r\u006fle", "1", "01", "a"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(INNER, inner), max_size=4).map(lambda items: written(items))
    ),
    max_leaves=8,
)
GOOD_FIELDS = st.sampled_from(
    [("role", '"system"'), ("role", '"assistant"'), ("content", '"é"'), ("content", r'"a\n\u00e9"'),
     ("name", '"n"'), ("tool_call_id", '"1"'), ("content", "null"), ("tool_calls", "null")]
)  # fmt: skip
ODD_FIELDS = st.sampled_from(
    [
        ("role", '"tool"'),
        ("role", '"root"'),
        ("content", '[{"type":"text","text":"x"}]'),
        ("tool_calls", "[]"),
    ]
)
MESSAGES = st.lists(
    st.lists(GOOD_FIELDS | GOOD_FIELDS | GOOD_FIELDS | ODD_FIELDS | st.tuples(INNER, VALUES), max_size=3).map(
        lambda items: written([("role", '"user"'), ("content", '"x"'), *items])
    ),
    min_size=1,
    max_size=3,
).map(lambda items: f"[{', '.join(items)}]")
GOOD = [
    ("stream", "true"), ("stream", "false"), ("n", "2"), ("n", "1.0"), ("max_tokens", "5"), ("seed", "-7"),
     ("temperature", "1"), ("temperature", "0.5"), ("stop", '"a"'), ("stop", '["a","b"]'), ("top_p", "null"),
     ("stream_options", "null"), ("stream_options", '{"include_usage":true}'), ("stream_options", "{}"),
     ("stop_sequences", '"a"'), ("stop_sequences", "null"), ("user", '"u"'), ("user", r'"\u00e9"'),
     ("prompt_cache_key", '"k"'), ("length_penalty", "1" * 30), ("stop_token_ids", "[1,2.0]"),
     ("cache_salt", '"s"'), ("truncate_prompt_tokens", "5"), ("max_completion_tokens", "6")
]  # fmt: skip


def written(members: list[tuple[str, str]], gap: str = "") -> str:
    return "{" + f",{gap}".join(f'"{name}":{gap}{value}' for name, value in members) + "}"


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good request of some path with more members, of which some are there already, and then perhaps with a
    few bytes changed."""
    path = draw(st.sampled_from([*plain.FORMS]))
    start = [("model", '"m"')]
    if path == CHAT:
        start.append(("messages", draw(MESSAGES)))
    else:
        start.append(
            ("prompt" if path == TEXT else "input", draw(st.just('"x"') | st.just('["x","y"]') | VALUES))
        )
    known = sorted(schemas.SCHEMAS[path].known)
    names = st.sampled_from([*known, "x", "best_of", "priority", r"mod\u0065l", r"str\u0065am", "Model", ""])
    good = st.sampled_from([(name, value) for name, value in GOOD if name in known])
    more = draw(st.lists(good | good | good | st.tuples(names, VALUES), max_size=4))
    members = draw(st.permutations([*start, *more]))
    body = written(members, draw(st.sampled_from(["", " ", "\n\t"]))).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(body)))
        what = draw(
            st.sampled_from([b"", b"null", b"{", b"]", b'"', b"\\u", b"\xc3", b"\xed\xa0\x80", b":", b","])
        )
        body = body[:at] + what + body[at + draw(st.integers(0, 2)) :]
    return path, body


@deadlines(deadline=None, max_examples=400)
@given(bodies())
def test_of_any_body_both_say_the_same(asked):
    path, body = asked
    assert said(path, body) == careful(path, body)


@deadlines(deadline=None, max_examples=200)
@given(st.sampled_from([*plain.FORMS]), st.data())
def test_what_stands_twice_is_refused_wherever_it_stands(path, data):
    """By one of its names or by two spellings of it; with the same value or with another."""
    given_by = {CHAT: ("messages", '[{"role":"user","content":"x"}]'), TEXT: ("prompt", '"x"')}
    start = [("model", '"m"'), given_by.get(path, ("input", '"x"')), ("user", '"u"')]
    name, value = data.draw(st.sampled_from(start))
    again = data.draw(st.sampled_from([name, f"\\u{ord(name[0]):04x}{name[1:]}"]))
    members = [*start]
    members.insert(data.draw(st.integers(0, 3)), (again, data.draw(st.sampled_from([value, "null", '"m"']))))
    refused = said(path, written(members).encode())
    assert isinstance(refused, tuple)
    assert refused[1:3] == ("duplicate_parameter", name)
