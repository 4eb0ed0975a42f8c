"""Requests that must be refused, and how: path, body, status, code, param. Run through both doors by
`test_bad_requests`; the type follows from the status.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USER = {"role": "user", "content": "hello"}
INVALID = "invalid_value"
MISSING = "missing_required_parameter"
UNKNOWN = "unknown_parameter"
UNSUPPORTED = "unsupported_parameter"
NOT_JSON = "invalid_json"


class Bad(NamedTuple):
    body: bytes
    code: str
    param: str | None
    path: str = CHAT
    status: int = 400
    type: str = "invalid_request_error"
    method: str = "POST"
    headers: dict[str, str] = {}
    authorized: bool = True


def chat(code: str, param: str | None, /, *without: str, **fields: Any) -> Bad:
    whole = {"model": "m", "messages": [USER], **fields}
    return Bad(json.dumps({k: v for k, v in whole.items() if k not in without}).encode(), code, param)


def text(code: str, param: str | None, /, *without: str, **fields: Any) -> Bad:
    whole = {"model": "m", "prompt": "hello", **fields}
    return Bad(json.dumps({k: v for k, v in whole.items() if k not in without}).encode(), code, param, TEXT)


def embed(code: str, param: str | None, /, *without: str, **fields: Any) -> Bad:
    whole = {"model": "m", "input": "hello", **fields}
    return Bad(json.dumps({k: v for k, v in whole.items() if k not in without}).encode(), code, param, EMBED)


def response(code: str, param: str | None, /, *without: str, **fields: Any) -> Bad:
    whole = {"model": "m", "input": "hello", **fields}
    body = json.dumps({k: v for k, v in whole.items() if k not in without}).encode()
    return Bad(body, code, param, "/v1/responses")


def item(code: str, param: str, /, **fields: Any) -> Bad:
    return response(code, f"input[1]{param}", input=[USER, fields])


def tokens(code: str, param: str | None, /, *without: str, **fields: Any) -> Bad:
    whole = {"model": "m", **fields}
    body = json.dumps({k: v for k, v in whole.items() if k not in without}).encode()
    return Bad(body, code, param, "/tokenize")


def part(code: str, param: str, /, **fields: Any) -> Bad:
    return chat(code, f"messages[0].content[0]{param}", messages=[{"role": "user", "content": [fields]}])


def tool(code: str, param: str, /, *tools: Any) -> Bad:
    return chat(code, param, tools=list(tools))


def function(name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


GOOD = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}

BROKEN = [
    Bad(b"", NOT_JSON, None),
    Bad(b" ", NOT_JSON, None),
    Bad(b"{", NOT_JSON, None),
    Bad(b"hello", NOT_JSON, None),
    Bad(GOOD[:-1], NOT_JSON, None),
    Bad(GOOD + b"}", NOT_JSON, None),
    Bad(GOOD + GOOD, NOT_JSON, None),
    Bad(b"\xef\xbb\xbf" + GOOD, NOT_JSON, None),
    Bad(GOOD.decode().encode("utf-16"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", b"\xff\xfe"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", b"\xed\xa0\x80"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", rb"\ud800"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", rb"\udc00\ud800"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", rb"\x41"), NOT_JSON, None),
    Bad(GOOD.replace(b"hello", b"two\nlines"), NOT_JSON, None),
    Bad(GOOD.replace(b'"model"', b"model"), NOT_JSON, None),
    Bad(GOOD.replace(b'"', b"'"), NOT_JSON, None),
    Bad(GOOD.replace(b'"m"', b'"m",'), NOT_JSON, None),
    Bad(GOOD.replace(b'"m"', b'"m"/*c*/'), NOT_JSON, None),
    Bad(b'{"temperature":NaN,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"temperature":Infinity,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"temperature":-Infinity,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"temperature":1e999,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"temperature":01,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"temperature":.5,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"seed":0x10,' + GOOD[1:], NOT_JSON, None),
    Bad(b'{"stream":True,' + GOOD[1:], NOT_JSON, None),
    Bad(b"[]", INVALID, None),
    Bad(b"null", INVALID, None),
    Bad(b'"hello"', INVALID, None),
    Bad(b"7", INVALID, None),
    Bad(b"[" + GOOD + b"]", INVALID, None),
    Bad(b'{"model":"m",' + GOOD[1:], "duplicate_parameter", "model"),
    Bad(b'{"stream":true,"stream":false,' + GOOD[1:], "duplicate_parameter", "stream"),
    Bad(rb'{"mod\u0065l":"m",' + GOOD[1:], "duplicate_parameter", "model"),
    Bad(b'{"x":1,"x":1,' + GOOD[1:], "duplicate_parameter", "x"),
    Bad(b"[" * 100_000, INVALID, None),
    Bad(b'{"model":' + b"[" * 100_000, "nested_too_deeply", None),
    Bad(b'{"a":' * 100_000, "nested_too_deeply", None),
]
NESTED = [
    chat("nested_too_deeply", None, tools=[function(parameters=nested(61))]),
    chat("nested_too_deeply", None, chat_template_kwargs=nested(64)),
    chat("nested_too_deeply", None, prediction=nested(500)),
    chat("nested_too_deeply", None, messages=[{**USER, "extra": nested(62)}]),
    text(
        "nested_too_deeply",
        None,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": nested(62)}},
    ),
]
MODELS = [
    chat(MISSING, "model", "model"),
    chat(INVALID, "model", model=None),
    chat(INVALID, "model", model=7),
    chat(INVALID, "model", model=["m"]),
    *(
        chat("model_not_found", "model", model=name)._replace(status=404)
        for name in ("nothing", "", "a b", "../x", "x" * 300, "m\n", "*", "m\u0000")
    ),
]
MESSAGES = [
    chat(MISSING, "messages", "messages"),
    chat(INVALID, "messages", messages=None),
    chat(INVALID, "messages", messages=[]),
    chat(INVALID, "messages", messages="hello"),
    chat(INVALID, "messages", messages=USER),
    chat(INVALID, "messages[0]", messages=["hello"]),
    chat(INVALID, "messages[0]", messages=[None]),
    chat(MISSING, "messages[0].role", messages=[{"content": "x"}]),
    chat(INVALID, "messages[0].role", messages=[{"role": 5, "content": "x"}]),
    chat(INVALID, "messages[0].role", messages=[{"role": "root", "content": "x"}]),
    chat(INVALID, "messages[0].role", messages=[{"role": "User", "content": "x"}]),
    chat(INVALID, "messages[0].content", messages=[{"role": "user", "content": 7}]),
    chat(INVALID, "messages[0].content", messages=[{"role": "user", "content": {"type": "text"}}]),
    chat(INVALID, "messages[1].content[0]", messages=[USER, {"role": "user", "content": ["hello"]}]),
    chat(MISSING, "messages[0].content", messages=[{"role": "user"}]),
    chat(MISSING, "messages[1].content", messages=[USER, {"role": "system", "content": None}]),
    chat(MISSING, "messages[0].tool_call_id", messages=[{"role": "tool", "content": "x"}]),
    chat(INVALID, "messages[0].name", messages=[{**USER, "name": "x" * 300}]),
    chat(INVALID, "messages[0].tool_calls", messages=[{"role": "assistant", "tool_calls": {}}]),
    chat(
        MISSING,
        "messages[0].tool_calls[0].id",
        messages=[{"role": "assistant", "tool_calls": [function(arguments="")]}],
    ),
    chat(
        INVALID,
        "messages[0].tool_calls[0].function.arguments",
        messages=[
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]}
        ],
    ),
    part(MISSING, ".type", text="x"),
    part(MISSING, ".type", image_url={"url": "http://10.0.0.1/"}),
    part(INVALID, ".type", type="hologram"),
    part(INVALID, ".type", type="file", file={"file_id": "x"}),
    part(INVALID, ".type", type="prompt_embeds", data="AAAA"),
    part(INVALID, ".type", type="image_embeds", image_embeds="AAAA"),
    part(MISSING, ".text", type="text"),
    part(INVALID, ".text", type="text", text=None),
    part(MISSING, ".image_url", type="image_url"),
    part(INVALID, ".image_url", type="image_url", image_url="http://10.0.0.1/"),
    part(MISSING, ".image_url.url", type="image_url", image_url={}),
    part(MISSING, ".input_audio.format", type="input_audio", input_audio={"data": "AAAA"}),
    part(UNKNOWN, ".uuid", type="image_url", image_url={"url": "data:,"}, uuid="1"),
    part(UNKNOWN, ".image_url", type="text", text="x", image_url="http://10.0.0.1/"),
]
URLS = [
    part("url_not_allowed", ".image_url.url", **IMAGE),
    part("url_not_allowed", ".image_url.url", type="image_url", image_url={"url": "HTTPS://example.com/x"}),
    part("url_not_allowed", ".image_url.url", type="image_url", image_url={"url": "file:///etc/passwd"}),
    part("url_not_allowed", ".image_url.url", type="image_url", image_url={"url": " data:image/png;base64,"}),
    part("url_not_allowed", ".image_url.url", type="image_url", image_url={"url": ""}),
    part("url_not_allowed", ".audio_url.url", type="audio_url", audio_url={"url": "ftp://10.0.0.1/"}),
    part("url_not_allowed", ".video_url.url", type="video_url", video_url={"url": "//10.0.0.1/"}),
    chat(
        "url_not_allowed",
        "messages[1].content[1].image_url.url",
        messages=[USER, {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}],
    ),
]
SAMPLING = [
    chat(INVALID, name, **{name: value})
    for name, value in [
        ("temperature", 2.1), ("temperature", -0.1), ("temperature", "hot"), ("temperature", True),
        ("top_p", 1.01), ("top_p", -1), ("top_p", []),
        ("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("frequency_penalty", "0"),
        ("n", 0), ("n", 129), ("n", 1.5), ("n", "1"), ("n", True), ("n", -1), ("n", 10**30),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 10**12), ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0), ("max_completion_tokens", {}),
        ("stop", 5), ("stop", ""), ("stop", ["x"] * 5), ("stop", "x" * 1001), ("stop", {}),
        ("stop_sequences", 5), ("stop_sequences", ["x"] * 5),
        ("seed", "x"), ("seed", 2**63), ("seed", 1.5),
        ("logit_bias", []), ("logit_bias", {"1": 101}), ("logit_bias", {"1": "x"}),
        ("logit_bias", {"word": 1}), ("logit_bias", {"-1": 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logprobs", 5), ("logprobs", "true"), ("top_logprobs", 21), ("top_logprobs", -1),
        ("stream", "yes"), ("stream", 1),
        ("user", 5), ("user", "x" * 513),
        ("metadata", {"a": 1}), ("metadata", {str(i): "x" for i in range(17)}), ("metadata", []),
        ("service_tier", 1), ("store", "no"),
        ("top_k", -2), ("top_k", 1.5), ("min_p", 1.1), ("repetition_penalty", 0), ("repetition_penalty", 11),
        ("min_tokens", -1), ("bad_words", ["x"] * 129),
        ("prompt_logprobs", -1), ("prompt_logprobs", 21), ("truncate_prompt_tokens", -2),
        ("truncation_side", "middle"), ("ignore_eos", 1), ("stream_interval", 0), ("cache_salt", ""),
        ("cache_salt", "a/b"), ("cache_salt", "x" * 129), ("chat_template_kwargs", []), ("tools", {}),
        ("tools", []), ("tools", [function(f"f{i}") for i in range(129)]), ("tool_choice", "auto"),
        ("tool_choice", "required"), ("structured_outputs", {}), ("structured_outputs", "json"),
        ("structured_outputs", {"json": {}, "regex": "x"}), ("response_format", "json"),
    ]
]  # fmt: skip
INSIDE = [
    chat(INVALID, "stop[1]", stop=["a", ""]),
    chat(INVALID, "stop_token_ids[0]", stop_token_ids=[-1]),
    chat(INVALID, "stop_token_ids[1]", stop_token_ids=[1, "x"]),
    chat(INVALID, "documents[0]", documents=["x"]),
    chat(INVALID, "modalities[1]", modalities=["text", "audio"]),
    chat(INVALID, "bad_words[0]", bad_words=[""]),
]
TOGETHER = [
    chat(INVALID, "stream_options", stream_options={"include_usage": True}),
    chat(INVALID, "stream_options", stream=False, stream_options={}),
    chat(INVALID, "stream_options", stream=True, stream_options=[]),
    chat(INVALID, "stream_options.include_usage", stream=True, stream_options={"include_usage": 1}),
    chat(UNKNOWN, "stream_options.usage", stream=True, stream_options={"usage": True}),
    chat(INVALID, "stop_sequences", stop="a", stop_sequences=["b"]),
    chat(INVALID, "top_logprobs", top_logprobs=2),
    chat(INVALID, "top_logprobs", logprobs=False, top_logprobs=2),
    chat(INVALID, "logprob_token_ids", logprob_token_ids=[1]),
    text(INVALID, "logprob_token_ids", logprob_token_ids=[1]),
    chat(INVALID, "prompt_logprobs", stream=True, prompt_logprobs=1),
    chat(INVALID, "continue_final_message", continue_final_message=True, add_generation_prompt=True),
    chat(UNSUPPORTED, "chat_template", chat_template_kwargs={"chat_template": "{{ 1 }}"}),
    chat(INVALID, "tool_choice", tools=[function()], tool_choice="maybe"),
    chat(INVALID, "tool_choice", tools=[function()], tool_choice=function("g")),
    chat(MISSING, "tool_choice.function", tools=[function()], tool_choice={"type": "function"}),
    chat(
        INVALID, "tool_choice.type", tools=[function()], tool_choice={"type": "x", "function": {"name": "f"}}
    ),
    text(INVALID, "n", prompt=["a"] * 100, n=100),
]
TOOLS = [
    tool(INVALID, "tools[0]", "f"),
    tool(MISSING, "tools[0].function", {"type": "function"}),
    tool(MISSING, "tools[0].type", {"function": {"name": "f"}}),
    tool(INVALID, "tools[0].type", {"type": "custom", "function": {"name": "f"}}),
    tool(MISSING, "tools[0].function.name", {"type": "function", "function": {}}),
    tool(INVALID, "tools[0].function.name", function("two words")),
    tool(INVALID, "tools[0].function.name", function("")),
    tool(INVALID, "tools[0].function.name", function("x" * 65)),
    tool(INVALID, "tools[0].function.name", function("f\n")),
    tool(INVALID, "tools[0].function.parameters", function(parameters="{}")),
    tool(INVALID, "tools", function(), function()),
]
FORMATS = [
    chat(INVALID, "response_format", response_format=[]),
    chat(MISSING, "response_format.type", response_format={}),
    chat(INVALID, "response_format.type", response_format={"type": "yaml"}),
    chat(MISSING, "response_format.json_schema", response_format={"type": "json_schema"}),
    chat(
        MISSING,
        "response_format.json_schema.name",
        response_format={"type": "json_schema", "json_schema": {"schema": {}}},
    ),
    chat(
        MISSING,
        "response_format.json_schema.schema",
        response_format={"type": "json_schema", "json_schema": {"name": "x"}},
    ),
    chat(
        INVALID,
        "response_format.json_schema.name",
        response_format={"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
    ),
]
PROMPTS = [
    text(MISSING, "prompt", "prompt"),
    text(INVALID, "prompt", prompt=None),
    text(INVALID, "prompt", prompt=5),
    text(INVALID, "prompt", prompt=""),
    text(INVALID, "prompt", prompt=[]),
    text(INVALID, "prompt", prompt={}),
    text(INVALID, "prompt[0]", prompt=[None]),
    text(INVALID, "prompt[0]", prompt=[True]),
    text(INVALID, "prompt[0]", prompt=[1.5]),
    text(INVALID, "prompt[0]", prompt=[-1]),
    text(INVALID, "prompt[1]", prompt=["a", 1]),
    text(INVALID, "prompt[2]", prompt=[1, 2, "a"]),
    text(INVALID, "prompt[1]", prompt=[[1], "a"]),
    text(INVALID, "prompt[0][1]", prompt=[[1, "a"]]),
    text(INVALID, "prompt[0]", prompt=[[]]),
    text(INVALID, "prompt[0][0]", prompt=[[[1]]]),
    text(INVALID, "prompt[0]", prompt=[2**31]),
    text(INVALID, "prompt", prompt=["a"] * 1025),
    text(INVALID, "echo", echo=1),
    text(INVALID, "logprobs", logprobs=True),
    text(INVALID, "logprobs", logprobs=21),
    text(INVALID, "suffix", suffix=[]),
    text(INVALID, "max_tokens", max_tokens=-1),
]
NAMES = [
    chat(UNKNOWN, "temprature", temprature=1),
    chat(UNKNOWN, "Temperature", Temperature=1),
    chat(UNKNOWN, None, **{"": 1}),
    chat(UNKNOWN, "x" * 80, **{"x" * 200: 1}),
    chat(UNKNOWN, "x", x=None),
    chat(UNKNOWN, "prompt", prompt="hello"),
    text(UNKNOWN, "messages", messages=[USER]),
    text(UNKNOWN, "tools", tools=[function()]),
    text(UNKNOWN, "max_completion_tokens", max_completion_tokens=5),
    *(
        chat(UNSUPPORTED, name, **{name: value})
        for name, value in {
            "best_of": 2,
            "functions": [{"name": "f"}],
            "function_call": "auto",
            "audio": {"voice": "alloy"},
            "web_search_options": {},
            "guided_json": {},
            "guided_choice": ["a"],
            "chat_template": "{{ messages }}",
            "mm_processor_kwargs": {"num_crops": 999},
            "media_io_kwargs": {"video": {"num_frames": -1}},
            "kv_transfer_params": {"remote_host": "10.0.0.1"},
            "vllm_xargs": {"a": 1},
            "priority": -1,
            "request_id": "mine",
            "use_beam_search": False,
        }.items()
    ),
    text(UNSUPPORTED, "best_of", best_of=1),
    text(UNSUPPORTED, "prompt_embeds", prompt_embeds="AAAA"),
]
EMBEDDINGS = [
    embed(MISSING, "input", "input"),
    embed(MISSING, "model", "model"),
    embed(INVALID, "input", input=None),
    embed(INVALID, "input", input=7),
    embed(INVALID, "input", input=""),
    embed(INVALID, "input", input=[]),
    embed(INVALID, "input[1]", input=["a", 1]),
    embed(INVALID, "input[1]", input=[1, "a"]),
    embed(INVALID, "input[0]", input=[-1]),
    embed(INVALID, "input[0]", input=[2**31]),
    embed(INVALID, "input[0]", input=[1.5]),
    embed(INVALID, "input[0]", input=[{"role": "user"}]),
    embed(INVALID, "input[0]", input=[[]]),
    embed(INVALID, "input[1][0]", input=[[1], ["a"]]),
    embed(INVALID, "input", input=["a"] * 2049),
    embed(INVALID, "dimensions", dimensions=0),
    embed(INVALID, "dimensions", dimensions="256"),
    embed(INVALID, "encoding_format", encoding_format="bytes"),
    embed(INVALID, "user", user=5),
    embed(INVALID, "truncate_prompt_tokens", truncate_prompt_tokens=-2),
    embed(UNKNOWN, "stream", stream=True),
    embed(UNKNOWN, "max_tokens", max_tokens=5),
    embed(UNKNOWN, "messages", "input", messages=[USER]),
    embed(UNSUPPORTED, "mm_processor_kwargs", mm_processor_kwargs={}),
    embed(UNSUPPORTED, "priority", priority=1),
    embed("model_not_found", "model", model="../m")._replace(status=404),
    Bad(b"", "method_not_allowed", None, path=EMBED, status=405, method="GET"),
]
TOKENS = [
    tokens(MISSING, "prompt"),
    tokens(MISSING, "model", "model", prompt="x"),
    tokens(INVALID, "prompt", prompt=["x"]),
    tokens(INVALID, "messages", prompt="x", messages=[USER]),
    tokens(INVALID, "messages", messages=[]),
    tokens(INVALID, "messages[0].role", messages=[{"role": "x"}]),
    tokens(MISSING, "messages[0].content", messages=[{"role": "user"}]),
    tokens("url_not_allowed", "messages[0].content[0].image_url.url",
           messages=[{"role": "user", "content": [IMAGE]}]),
    tokens(INVALID, "tools", prompt="x", tools=[function()]),
    tokens(INVALID, "tools", messages=[USER], tools=[function(), function()]),
    tokens(INVALID, "add_generation_prompt", prompt="x", add_generation_prompt=True),
    tokens(INVALID, "continue_final_message", messages=[USER], continue_final_message=True,
           add_generation_prompt=True),
    tokens(UNSUPPORTED, "chat_template", messages=[USER], chat_template="x"),
    tokens(UNSUPPORTED, "chat_template", messages=[USER], chat_template_kwargs={"chat_template": "x"}),
    tokens(UNSUPPORTED, "mm_processor_kwargs", messages=[USER], mm_processor_kwargs={}),
    tokens(UNKNOWN, "max_tokens", prompt="x", max_tokens=1),
    tokens(UNKNOWN, "stream", prompt="x", stream=True),
    tokens(UNKNOWN, "tokens", prompt="x", tokens=[1]),
    tokens(MISSING, "tokens")._replace(path="/detokenize"),
    tokens(INVALID, "tokens[1]", tokens=[1, -1])._replace(path="/detokenize"),
    tokens(INVALID, "tokens[0]", tokens=[2**31])._replace(path="/detokenize"),
    tokens(INVALID, "tokens[0]", tokens=["a"])._replace(path="/detokenize"),
    tokens(INVALID, "tokens", tokens=None)._replace(path="/detokenize"),
    tokens("unknown_url", None, prompt="x")._replace(path="/v1/tokenize", status=404),
    Bad(b"", "method_not_allowed", None, path="/tokenize", status=405, method="GET"),
    Bad(b"{", "invalid_api_key", None, "/tokenize", 401, "authentication_error", authorized=False),
    Bad(b'{"url":"/tokenize","body":{}}', INVALID, "url", path="/jobs"),
]  # fmt: skip
CALL = {"type": "function", "name": "f"}
SEEN = {"type": "input_image", "image_url": "http://169.254.169.254/latest"}
RESPONSES = [
    response(MISSING, "input", "input"),
    response(MISSING, "model", "model"),
    response(INVALID, "input", input=None),
    response(INVALID, "input", input=7),
    response(INVALID, "input", input=[]),
    response(INVALID, "input", input=USER),
    response(INVALID, "input[0]", input=["hello"]),
    response(INVALID, "input[1]", input=[USER, None]),
    item(MISSING, ".content", role="user"),
    item(INVALID, ".content", role="user", content=None),
    item(INVALID, ".content", role="user", content=[]),
    item(INVALID, ".role", role="tool", content="x"),
    item(MISSING, ".role", type="message", content="x"),
    item(INVALID, ".role", type="message", role=7, content="x"),
    item(INVALID, ".content[0]", role="user", content=["x"]),
    item(INVALID, ".content[0].type", role="user", content=[{"type": "text", "text": "x"}]),
    item(INVALID, ".content[0].type", role="user", content=[{"type": "output_text", "text": "x"}]),
    item(INVALID, ".content[0].type", role="user", content=[{"type": "input_file", "file_id": "file-1"}]),
    item(UNKNOWN, ".content[0].uuid", role="user", content=[{"type": "input_text", "text": "", "uuid": "1"}]),
    item(UNKNOWN, ".content[0].file_id", role="user", content=[{**SEEN, "file_id": "file-1"}]),
    item("url_not_allowed", ".content[0].image_url", role="user", content=[SEEN]),
    item("url_not_allowed", ".output[0].image_url", type="function_call_output", call_id="1", output=[SEEN]),
    item(MISSING, ".type", role="assistant", content=[{"type": "output_text", "text": "x"}]),
    item(INVALID, ".content", type="message", role="assistant", content=[]),
    item(INVALID, ".content[0].type", type="message", role="assistant",
         content=[{"type": "refusal", "refusal": "x"}]),
    item(INVALID, ".type", type="item_reference", id="msg_1"),
    item(INVALID, ".type", id="msg_1"),
    item(INVALID, ".type", type="web_search_call", id="ws_1"),
    item(INVALID, ".type", type=["message"]),
    item(MISSING, ".call_id", type="function_call", name="f", arguments="{}"),
    item(INVALID, ".arguments", type="function_call", call_id="1", name="f", arguments={}),
    item(MISSING, ".output", type="function_call_output", call_id="1"),
    item(MISSING, ".input", type="custom_tool_call", call_id="1", name="f"),
    item(MISSING, ".summary", type="reasoning", id="rs_1"),
    item(UNKNOWN, ".content[0].url", type="reasoning", summary=[],
         content=[{"type": "reasoning_text", "text": "x", "url": "http://10.0.0.1/"}]),
    response("nested_too_deeply", None, input=[{**USER, "extra": nested(62)}]),
    *(
        response(UNSUPPORTED, name, **{name: value})
        for name, value in {
            "store": True, "background": True, "previous_response_id": "resp_1", "conversation": {"id": "c"},
            "prompt": {"id": "pmpt_1"}, "context_management": [{"type": "compaction"}], "request_id": "mine",
            "priority": 1, "vllm_xargs": {}, "kv_transfer_params": {}, "media_io_kwargs": {},
            "mm_processor_kwargs": {}, "session_id": "x",
        }.items()
    ),
    *(
        response(UNKNOWN, name, **{name: 1})
        for name in ("max_tokens", "messages", "n", "previous_input_messages")
    ),
    *(
        response(INVALID, name, **{name: value})
        for name, value in [
            ("instructions", [USER]), ("max_output_tokens", 0), ("max_output_tokens", "5"),
            ("temperature", 2.1), ("top_p", 1.1), ("top_logprobs", 21), ("stream", "yes"), ("store", 1),
            ("stream_options", {}), ("tools", {}), ("tool_choice", "required"), ("tool_choice", CALL),
            ("truncation", "middle"), ("service_tier", "first"), ("metadata", {"a": 1}), ("stop", ["x"] * 5),
            ("structured_outputs", {}), ("cache_salt", "a/b"), ("text", "json"), ("reasoning", "low"),
        ]
    ),
    response(UNKNOWN, "stream_options.include_usage", stream=True, stream_options={"include_usage": True}),
    response(INVALID, "include[0]", include=["web_search_call.action.sources"]),
    response(INVALID, "reasoning.effort", reasoning={"effort": "huge"}),
    response(INVALID, "text.format.type", text={"format": {"type": "grammar"}}),
    response(MISSING, "text.format.schema", text={"format": {"type": "json_schema", "name": "x"}}),
    response(UNSUPPORTED, "chat_template", chat_template_kwargs={"chat_template": "x"}),
    response(INVALID, "tools", tools=[CALL, CALL]),
    response(INVALID, "tools[0].type", tools=[{"type": "web_search"}]),
    response(INVALID, "tools[0].type", tools=[{"type": "mcp", "server_url": "http://10.0.0.1/"}]),
    response(MISSING, "tools[0].name", tools=[function()]),
    response(INVALID, "tool_choice", tools=[CALL], tool_choice={"type": "function", "name": "g"}),
    response(INVALID, "tool_choice.type", tools=[CALL], tool_choice={"type": "allowed_tools", "tools": []}),
    response("model_not_found", "model", model="../m")._replace(status=404),
    *(
        Bad(b"", "response_not_found", None, path=f"/v1/responses/resp_1{below}", status=404, method=method)
        for below, method in (("", "GET"), ("", "DELETE"), ("/cancel", "POST"), ("/input_items", "GET"))
    ),
    Bad(b"", "invalid_api_key", None, "/v1/responses/resp_1", 401, "authentication_error", "GET",
        authorized=False),
    Bad(b"", "method_not_allowed", None, path="/v1/responses", status=405, method="GET"),
    Bad(b"{}", "method_not_allowed", None, path="/v1/responses/input_tokens", status=405),
]  # fmt: skip
ENVELOPES = [
    Bad(GOOD, "invalid_api_key", None, status=401, type="authentication_error", authorized=False),
    Bad(b"{", "invalid_api_key", None, status=401, type="authentication_error", authorized=False),
    *(
        Bad(
            GOOD,
            "invalid_api_key",
            None,
            status=401,
            type="authentication_error",
            headers={"Authorization": authorization},
        )
        for authorization in ("Bearer wrong", "Bearer ", "Basic eDp5", "Bearer", "\xff")
    ),
    *(
        Bad(GOOD, "unsupported_media_type", None, status=415, headers=headers)
        for headers in (
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "multipart/form-data; boundary=x"},
            {"Content-Type": "application/jsonp"},
            {"Content-Encoding": "gzip"},
        )
    ),
    *(
        Bad(GOOD, "unknown_url", None, path=path, status=404)
        for path in (
            "/v1",
            "/v1/",
            "/v1/nothing",
            "/v1/chat",
            "/v1/chat/completions/",
            "/v1//chat/completions",
            "//v1/chat/completions",
            "/v2/chat/completions",
            "/V1/chat/completions",
            "/v1/chat/completions%00",
            "/v1/%2e%2e/admin",
            "/chat/completions",
        )
    ),
    *(
        Bad(b"", "method_not_allowed", None, path=path, status=405, method=method)
        for path, method in [
            (CHAT, "GET"),
            (CHAT, "PUT"),
            (CHAT, "DELETE"),
            (TEXT, "PATCH"),
            ("/v1/models", "POST"),
            ("/v1/models/m", "DELETE"),
            ("/healthz", "POST"),
            ("/jobs", "DELETE"),
            (CHAT, "BREW"),
        ]
    ),
    Bad(b'{"url":"\xff","body":{}}', NOT_JSON, None, path="/jobs"),
    Bad(b'{"url":5,"body":{}}', INVALID, "url", path="/jobs"),
    Bad(b'{"body":{}}', MISSING, "url", path="/jobs"),
    Bad(b"[]", NOT_JSON, None, path="/jobs"),
    Bad(GOOD[:-1] + b',"best_of":2}', UNSUPPORTED, "best_of", path="/jobs"),
    Bad(GOOD, "unsupported_media_type", None, "/jobs", 415, headers={"Content-Type": "text/csv"}),
    Bad(b"", "job_not_found", None, path="/jobs/nothing", status=404, method="GET"),
    Bad(b"", INVALID, "limit", path="/jobs?limit=0", method="GET"),
    Bad(b"", UNKNOWN, "x", path="/jobs?x=1", method="GET"),
    Bad(b"", "model_not_found", "model", path="/v1/models/nothing", status=404, method="GET"),
    Bad(
        b"",
        "insufficient_permissions",
        None,
        path="/workers",
        status=403,
        method="GET",
        type="permission_error",
    ),
    Bad(b" " * 700_001, "request_too_large", None, status=413),
]

ALL = [
    *(*BROKEN, *NESTED, *MODELS, *MESSAGES, *URLS, *SAMPLING, *INSIDE),
    *(*TOGETHER, *TOOLS, *FORMATS, *PROMPTS, *NAMES, *EMBEDDINGS, *TOKENS, *RESPONSES, *ENVELOPES),
]
LARGEST = 700_000
