from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import settings as deadlines
from hypothesis import strategies as st

from api.errors import ApiError
from api.sampling import REFUSED
from api.schemas import DEEPEST, EMBEDDINGS, SCHEMAS, parse

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
PARTS = [
    {"type": "text", "text": "x"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    {"type": "video_url", "video_url": {"url": "DATA:video/mp4;base64,AA=="}},
    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FORMATS = [
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
    {"type": "structural_tag", "format": {}},
]


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
        (CHAT, b' {\n "messages" :[{"role":"assistant","content":null}], "model": "org/M-1.5:q4" } '),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}])),
        (
            CHAT,
            chat(
                tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                tool_choice={"type": "function", "function": {"name": "f"}},
                parallel_tool_calls=False,
            ),
        ),
        (
            CHAT,
            chat(
                messages=[
                    {"role": "developer", "content": "x", "name": "n"},
                    {"role": "user", "content": PARTS},
                    {
                        "role": "assistant",
                        "tool_calls": [CALL],
                        "refusal": None,
                        "reasoning": "x",
                        "made": "up",
                    },
                    {"role": "tool", "content": "x", "tool_call_id": "1"},
                ]
            ),
        ),
        *((CHAT, chat(response_format=form)) for form in FORMATS),
        *((TEXT, text(structured_outputs=kind)) for kind in ({"regex": "a+"}, {"choice": ["a"]})),
        (CHAT, chat(chat_template_kwargs={"enable_thinking": False}, top_k=-1, min_p=0.1, ignore_eos=True)),
        (
            CHAT,
            chat(repetition_penalty=1.1, stop_token_ids=[1], min_tokens=1, bad_words=["x"], cache_salt="s"),
        ),
        (CHAT, chat(metadata={"a": "b"}, store=True, service_tier="auto", reasoning_effort="low", stop=None)),
        (CHAT, chat(best_of=None, functions=None, chat_template=None, logit_bias=None, tools=None)),
        (
            CHAT,
            chat(logprobs=True, top_logprobs=5, seed=1, n=2, stop=["a", "b"], user="u", logit_bias={"1": 2}),
        ),
        (CHAT, chat(temperature=0, top_p=1, presence_penalty=-2, frequency_penalty=2.0, max_tokens=None)),
        (CHAT, chat(stream=False, max_completion_tokens=5, prediction={"x": [1.50, 1e3]})),
        (
            CHAT,
            b'{"model":"m","messages":[{"role":"user","content":"x","huge":123456789012345678901234567890}]}',
        ),
        (TEXT, text(max_tokens=0, echo=True, stop="x", stream=None)),
        (TEXT, text(prompt=[1, 2, 3])),
        (TEXT, text(prompt=["a", "b"])),
        (TEXT, text(prompt=[[1, 2], [3]], n=2, logprobs=5, suffix="x")),
        (EMBEDDINGS, b'{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":256}'),
        (EMBEDDINGS, b'{"model":"m","input":[1,2,3]}'),
        ("/tokenize", b'{"model":"m","prompt":"","return_token_strs":true,"add_special_tokens":false}'),
        ("/tokenize", chat(tools=None, add_generation_prompt=True, chat_template_kwargs={"x": 1})),
        ("/detokenize", b'{"model":"m","tokens":[0,5]}'),
        ("/detokenize", b'{"model":"m","tokens":[]}'),
        (
            EMBEDDINGS,
            b'{"model":"m","input":"a","truncate_prompt_tokens":-1,"encoding_format":null}',
        ),
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
        (CHAT, text(), "prompt", "unknown_parameter"),
        (EMBEDDINGS, b'{"model":"m"}', "input", "missing_required_parameter"),
        (EMBEDDINGS, b'{"model":"m","input":["a",1]}', "input[1]", "invalid_value"),
        (EMBEDDINGS, b'{"model":"m","input":"a","dimensions":0}', "dimensions", "invalid_value"),
        (EMBEDDINGS, b'{"model":"m","input":"a","stream":true}', "stream", "unknown_parameter"),
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
        (CHAT, chat(stop=["x"] * 5), "stop", "invalid_value"),
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
    body = chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    request = parse(CHAT, body, key=1)
    assert (request.body, request.stream, request.hide_usage) == (body, True, False)


@pytest.mark.parametrize("body", [chat(stream=True), b' \n{ "stream":true,' + chat()[1:], text(stream=True)])
def test_a_stream_without_options_gets_them_and_stays_as_it_is_otherwise(body):
    request = parse(TEXT if b"prompt" in body else CHAT, body, key=1)
    assert request.hide_usage
    assert json.loads(request.body) == {**json.loads(body), "stream_options": {"include_usage": True}}
    assert request.body.replace(b'"stream_options":{"include_usage":true},', b"", 1) == body


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"include_obfuscation": True}]
)
def test_a_stream_with_other_options_keeps_them(options):
    request = parse(CHAT, chat(stream=True, stream_options=options, top_k=3), key=1)
    assert request.hide_usage
    sent = json.loads(request.body)
    assert sent.pop("stream_options") == {**(options or {}), "include_usage": True}
    assert sent == json.loads(chat(stream=True, top_k=3))


def test_a_huge_number_beside_the_options_survives():
    body = chat(stream=True, stream_options=None, prediction={"x": 123456789012345678901})
    assert json.loads(parse(CHAT, body, key=1).body)["prediction"] == {"x": 123456789012345678901}


@pytest.mark.parametrize("stream", [False, None])
def test_stream_options_need_a_stream(stream):
    assert (
        refusal(CHAT, chat(stream=stream, stream_options={"include_usage": True})).param == "stream_options"
    )


# -- what the operator decides -------------------------------------------------------------------------


def test_stop_sequences_are_another_name_for_stop():
    for given_as, stop in ((["a", "b"], ["a", "b"]), ("a", "a")):
        request = parse(CHAT, chat(stop_sequences=given_as, temperature=0.5), key=1)
        assert json.loads(request.body) == json.loads(chat(stop=stop, temperature=0.5))
    request = parse(CHAT, chat(stop="a", stop_sequences=None), key=1)
    assert json.loads(request.body) == json.loads(chat(stop="a"))
    streamed = json.loads(parse(TEXT, text(stop_sequences="a", stream=True), key=1).body)
    assert streamed == {**json.loads(text(stop="a", stream=True)), "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("url", ["http://example.com/x.png", "HTTPS://example.com/x.png"])
def test_urls_that_a_node_would_fetch_are_the_operators_choice(settings, url):
    body = chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert refusal(CHAT, body).code == "url_not_allowed"
    settings.ALLOW_URLS = True
    assert parse(CHAT, body, key=1).body == body
    assert refusal(CHAT, body.replace(b"http", b"file").replace(b"HTTPS", b"file")).code == "url_not_allowed"


def test_the_operator_can_let_further_parameters_pass(settings):
    body = chat(mirostat=2, chat_template="x")
    assert refusal(CHAT, body).param == "chat_template"
    settings.EXTRA_PARAMETERS = frozenset({"mirostat", "chat_template"})
    assert parse(CHAT, body, key=1).body == body


def test_no_parameter_is_both_taken_and_refused():
    for schema in SCHEMAS.values():
        assert not schema.known & set(REFUSED)


@pytest.mark.parametrize("depth", [63, 64, 65])
def test_the_limit_on_depth_is_exact(depth):
    inner: dict = {}
    for _ in range(depth - 2):  # the body and the parameter are levels, too
        inner = {"a": inner}
    body = chat(chat_template_kwargs=inner)
    if depth > DEEPEST:
        assert refusal(CHAT, body).code == "nested_too_deeply"
    else:
        assert parse(CHAT, body, key=1).body == body


# -- whatever comes ------------------------------------------------------------------------------------


@deadlines(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body):
    assert refusal(CHAT, body).status in {400, 404}


WORDS = st.text('aé中"\\\n', max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.sampled_from(["role", "content", "type", "function"]), inner, max_size=3)
    ),
    max_leaves=9,
)


@deadlines(deadline=None)
@given(
    st.sampled_from([*SCHEMAS]),
    st.data(),
)
def test_no_json_does_more_than_be_refused(path, data):
    names = sorted(SCHEMAS[path].known | {"best_of", "x"})
    start: dict = {"model": "m", "messages": HELLO, "prompt": "x", "input": "x", "tokens": [1]}
    if path == "/tokenize":
        del start["messages"]
    fields = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=4))
    start = {name: value for name, value in start.items() if name in SCHEMAS[path].known}
    with suppress(ApiError):  # any other exception fails the test
        request = parse(path, json.dumps({**start, **fields}).encode(), key=1)
        assert json.loads(request.body)["model"] == request.model
