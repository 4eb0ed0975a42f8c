from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import ApiError
from api.schemas import parse

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO, **fields}).encode()


def text(**fields) -> bytes:
    return json.dumps({"model": "m", "prompt": "hello", **fields}).encode()


def without(body: bytes, field: str) -> bytes:
    whole = json.loads(body)
    del whole[field]
    return json.dumps(whole).encode()


def refusal(path: str, body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(path, body, key=1)
    return caught.value


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (CHAT, b' {\n "messages" :[{"role":"user","content":null}], "model": "org/M-1.5:q4" } '),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}])),
        (
            CHAT,
            chat(tools=[{"type": "function"}], tool_choice="auto", response_format={"type": "json_object"}),
        ),
        (
            CHAT,
            chat(logprobs=True, top_logprobs=5, seed=1, n=2, stop=["a", "b"], user="u", logit_bias={"1": 2}),
        ),
        (CHAT, chat(temperature=0, top_p=1, presence_penalty=-2, frequency_penalty=2.0, max_tokens=None)),
        (CHAT, chat(stream=False, max_completion_tokens=5, made_up_by_the_engine={"x": [1.50, 1e3]})),
        (CHAT, b'{"model":"m","messages":[{"role":"user"}],"huge":123456789012345678901234567890}'),
        (TEXT, text(max_tokens=0, echo=True, stop="x", stream=None)),
        (TEXT, text(prompt=[1, 2, 3])),
        (TEXT, text(prompt=["a", "b"])),
        (TEXT, text(prompt="")),
    ],
)
def test_a_good_request_passes_byte_for_byte(path, body):
    request = parse(path, body, key=7)
    assert (request.body, request.path, request.stream, request.key) == (body, path, False, 7)
    assert request.model == json.loads(body)["model"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, without(chat(), "model"), "model", "missing_required_parameter"),
        (CHAT, without(chat(), "messages"), "messages", "missing_required_parameter"),
        (TEXT, without(text(), "prompt"), "prompt", "missing_required_parameter"),
        (CHAT, chat(messages=[{"content": "x"}]), "messages[0].role", "missing_required_parameter"),
        (CHAT, text(), "messages", "missing_required_parameter"),
        (CHAT, chat(model=7), "model", "invalid_value"),
        (CHAT, chat(model=None), "model", "invalid_value"),
        (CHAT, chat(messages=[]), "messages", "invalid_value"),
        (CHAT, chat(messages="hi"), "messages", "invalid_value"),
        (CHAT, chat(messages=["hi"]), "messages[0]", "invalid_value"),
        (CHAT, chat(messages=[{"role": 5}]), "messages[0].role", "invalid_value"),
        (CHAT, chat(stream="yes"), "stream", "invalid_value"),
        (CHAT, chat(stream=True, stream_options=[]), "stream_options", "invalid_value"),
        (CHAT, chat(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage",
         "invalid_value"),
        (CHAT, chat(temperature=2.1), "temperature", "invalid_value"),
        (CHAT, chat(temperature=-0.1), "temperature", "invalid_value"),
        (CHAT, chat(temperature="hot"), "temperature", "invalid_value"),
        (CHAT, chat(top_p=1.01), "top_p", "invalid_value"),
        (CHAT, chat(presence_penalty=2.5), "presence_penalty", "invalid_value"),
        (CHAT, chat(frequency_penalty=-2.5), "frequency_penalty", "invalid_value"),
        (CHAT, chat(n=0), "n", "invalid_value"),
        (CHAT, chat(n=129), "n", "invalid_value"),
        (CHAT, chat(n=1.5), "n", "invalid_value"),
        (CHAT, chat(max_tokens=-1), "max_tokens", "invalid_value"),
        (CHAT, chat(max_tokens=10**12), "max_tokens", "invalid_value"),
        (CHAT, chat(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
        (CHAT, chat(stop=5), "stop", "invalid_value"),
        (CHAT, chat(stop=["x"] * 65), "stop", "invalid_value"),
        (CHAT, chat(seed="x"), "seed", "invalid_value"),
        (CHAT, chat(user=5), "user", "invalid_value"),
        (TEXT, text(prompt=5), "prompt", "invalid_value"),
        (TEXT, text(prompt=None), "prompt", "invalid_value"),
        (TEXT, text(echo=1), "echo", "invalid_value"),
        (CHAT, b"[]", None, "invalid_value"),
        (CHAT, b'"x"', None, "invalid_value"),
        (CHAT, b"null", None, "invalid_value"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_400_naming_the_parameter(path, body, param, code):
    refused = refusal(path, body)
    assert (refused.status, refused.type) == (400, "invalid_request_error")
    assert (refused.param, refused.code) == (param, code)
    assert param is None or param in refused.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", chat()[:-1], chat() + b"}", b"\xff\xfe{}", b'{"model":"\xff"}',
     b"\xef\xbb\xbf" + chat(), chat().replace(b"hello", rb"\ud800"), chat(temperature=float("nan")),
     b"[" * 100_000, b'{"a":' * 100_000],
    ids=range(12),
)  # fmt: skip
def test_what_is_not_json_is_refused_with_400(body):
    refused = refusal(CHAT, body)
    assert refused.status == 400
    assert len(refused.message) < 400


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 201, "m\n", "*"])
def test_a_model_that_cannot_be_one_is_not_found(name):
    refused = refusal(CHAT, chat(model=name))
    assert (refused.status, refused.code, refused.param) == (404, "model_not_found", "model")
    assert len(refused.message) < 300


# -- usage, which the ledger needs of every stream -----------------------------------------------------


def test_a_stream_that_asks_for_usage_passes_byte_for_byte():
    body = chat(stream=True, stream_options={"include_usage": True, "other": 1})
    request = parse(CHAT, body, key=1)
    assert (request.body, request.stream, request.hide_usage) == (body, True, False)


@pytest.mark.parametrize("body", [chat(stream=True), b' \n{ "stream":true,' + chat()[1:], text(stream=True)])
def test_a_stream_without_options_gets_them_and_stays_as_it_is_otherwise(body):
    request = parse(TEXT if b"prompt" in body else CHAT, body, key=1)
    assert request.hide_usage
    assert json.loads(request.body) == {**json.loads(body), "stream_options": {"include_usage": True}}
    assert request.body.replace(b'"stream_options":{"include_usage":true},', b"", 1) == body


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"other": 1}]
)
def test_a_stream_with_other_options_keeps_them(options):
    request = parse(CHAT, chat(stream=True, stream_options=options, top_k=3), key=1)
    assert request.hide_usage
    sent = json.loads(request.body)
    assert sent.pop("stream_options") == {**(options or {}), "include_usage": True}
    assert sent == json.loads(chat(stream=True, top_k=3))


def test_a_huge_number_beside_the_options_survives():
    body = chat(stream=True, stream_options=None, x=123456789012345678901)
    assert json.loads(parse(CHAT, body, key=1).body)["x"] == 123456789012345678901


@pytest.mark.parametrize("stream", [False, None])
def test_stream_options_need_a_stream(stream):
    assert (
        refusal(CHAT, chat(stream=stream, stream_options={"include_usage": True})).param == "stream_options"
    )


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body):
    assert refusal(CHAT, body).status in {400, 404}


WORDS = st.text('aé中"\\\n', max_size=5)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stream", "stream_options", "n", "stop", "seed", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | WORDS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
            max_leaves=9,
        ),
    )
)  # fmt: skip
def test_no_json_does_more_than_be_refused(fields):
    with suppress(ApiError):  # any other exception fails the test
        parse(CHAT, json.dumps({"model": "m", "messages": HELLO, **fields}).encode(), key=1)
