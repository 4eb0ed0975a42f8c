"""What each case should show, whichever client goes through it.

`CLIENTS` says which cases a client has; where one shows a case in its own way, that stands with it.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.world import FAST

SHARED: dict[str, dict[str, Any]] = {
    "models": {"listed": True, "retrieved": FAST, "object": "model"},
    "completion": {"text": "one two one two", "finish": "length", "usage": [2, 4, 6]},
    "completion_stream": {"text": "p q p", "usages": 0},
    "chat_whole": {"text": "red green blue", "finish": "length", "usage": [3, 3, 6]},
    "chat_parts": {"texts": ["red green", "red green"], "logprobs": True},
    "stream": {"text": "a b c a b", "finish": "length", "ids": 1, "usages": 0},
    "stream_usage": {"usage": [3, 5, 8], "choices": 0},
    "stream_helper": {"begins": "a b c", "kinds": ["chunk", "content.delta", "content.done"]},
    "tools": {
        "name": "look_up", "arguments": {"echo": "weather in Rome"}, "finish": "tool_calls", "then": "sunny",
    },
    "tools_stream": {"name": "look_up", "arguments": {"echo": "weather in Rome"}, "finish": "tool_calls"},
    "structured": {"name": "New York", "people": 1},
    "json_object": {"document": {"echo": "in JSON"}},
    "response": {
        "text": "red green blue", "status": "incomplete", "usage": [3, 3, 6], "id": ["resp", 32],
        "model": FAST,
    },
    "response_stream": {
        "first": "response.created", "last": "response.completed", "text": "a b c a b", "ids": 1,
        "in_order": True, "usage": [3, 5, 8],
    },
    "response_helper": {"text": "a b c", "deltas": True},
    "response_tools": {
        "kind": "function_call", "name": "look_up", "arguments": {"echo": "weather in Rome"}, "then": "sunny",
    },
    "response_structured": {"name": "New York", "people": 1},
    "response_refused": {
        "error": "BadRequestError", "status": 400, "code": "unsupported_parameter",
        "param": "previous_response_id",
    },
    "response_not_found": {
        "error": "NotFoundError", "status": 404, "code": "response_not_found", "param": None,
    },
    "response_broken_off": {
        "error": "APIError", "status": None, "code": "upstream_failed", "param": None, "text": "a",
    },
    "many_at_once": {"own": 24},
    "request_id": {"mine": "mine-1", "parsed": "x"},
    "wrong_key": {"error": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None},
    "no_model": {"error": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
    "no_model_card": {"error": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
    "bad_value": {"error": "BadRequestError", "status": 400, "code": "invalid_value", "param": "temperature"},
    "unknown_parameter": {
        "error": "BadRequestError", "status": 400, "code": "unknown_parameter", "param": "colour",
    },
    "refused_by_engine": {
        "error": "BadRequestError", "status": 400, "code": "rejected_by_engine", "param": None,
    },
    "refused_stream": {
        "error": "BadRequestError", "status": 400, "code": "invalid_value", "param": "temperature",
    },
    "no_workers": {"error": "InternalServerError", "status": 503, "code": "no_workers", "param": None},
    "not_retried": {
        "error": "InternalServerError", "status": 503, "code": "model_unavailable", "param": None,
        "statuses": [503],
    },
    "rate_limited": {"code": "rate_limit_exceeded", "type": "rate_limit_error", "after": "1"},
    "rate_limit_waited": {"first": 429, "last": 200, "repeated": True, "waited": True, "text": "now"},
    "stream_broken_off": {
        "error": "APIError", "status": None, "code": "upstream_failed", "param": None, "text": "a",
    },
    "disconnect": {},
    "timeout": {"error": "APITimeoutError", "status": None, "code": None, "param": None},
}  # fmt: skip


RESPONSES = tuple(name for name in SHARED if name.startswith("response"))


def without(*cases: str, **shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The shared cases but for some, and with those that a client shows differently."""
    return {name: shown.get(name, saw) for name, saw in SHARED.items() if name not in cases}


def less(case: str, *facts: str, **other: Any) -> dict[str, Any]:
    """A shared case of which a client shows only these facts, and perhaps in other words."""
    return {**{fact: SHARED[case][fact] for fact in facts}, **other}


NODE = without(
    "chat_parts", "stream_helper",
    timeout={**SHARED["timeout"], "error": "APIConnectionTimeoutError"},
)  # fmt: skip

LANGCHAIN = without(
    "models", "chat_parts", "stream_helper", "request_id", "no_model_card", "refused_stream",
    *(name for name in RESPONSES if name != "response"),
    response=less("response", "text", "usage"),
    chat_whole={**SHARED["chat_whole"], "usage": [4, 3, 7]},  # with a system message of one word
    completion=less("completion", "text"),
    completion_stream=less("completion_stream", "text"),
    stream=less("stream", "text", "finish", "ids"),
    stream_usage=less("stream_usage", "usage"),
)  # fmt: skip

LITELLM = without(
    "models", "chat_parts", "stream_helper", "many_at_once", "request_id", "no_model_card", "refused_stream",
    *(name for name in RESPONSES if name != "response"),
    response=less("response", "status", text="red green blue " * 5 + "red"),  # it asks for 16 tokens at least
    completion_stream=less("completion_stream", "text"),
    stream=less("stream", "text", "finish"),
    stream_usage=less("stream_usage", "usage"),
    # Its errors keep the status and have neither code nor param.
    **{
        name: less(name, "error", "status")
        for name in ("wrong_key", "no_model", "bad_value", "unknown_parameter", "refused_by_engine")
    },
    no_workers=less("no_workers", "status", error="ServiceUnavailableError"),
    not_retried=less("not_retried", "status", "statuses", error="ServiceUnavailableError"),
    rate_limited={"error": "RateLimitError", "status": 429},
    stream_broken_off=less("stream_broken_off", "text", error="MidStreamFallbackError"),
    timeout={"error": "Timeout", "status": 408},
)  # fmt: skip

CLIENTS: dict[str, dict[str, dict[str, Any]]] = {
    "openai2": SHARED,
    "openai3": SHARED,
    "node": NODE,
    "langchain": LANGCHAIN,
    "litellm": LITELLM,
}
