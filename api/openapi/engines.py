"""The paths whose requests go to an engine: a part of the table in `operations`."""

from __future__ import annotations

from typing import Any, Final

from api import schemas
from api.openapi import answers
from api.openapi.operation import KEY, SSE, Content, Operation, ends
from worker_agent.contract import RESPONSES

CHAT: Final = "/v1/chat/completions"
MODEL: Final = "Qwen/Qwen3-8B"
CHAT_EXAMPLE: Final = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
JOB_ID: Final = "0193a7c5d3b97e6f8a1b2c3d4e5f6071"
USAGE: Final = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
_RESPONSE: Final = {
    "id": f"resp_{JOB_ID}",
    "object": "response",
    "created_at": 1790000001,
    "status": "completed",
    "model": MODEL,
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi there", "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12},
}
_REFUSALS: Final = (400, 404, 413, 415, *ends())


def _completion(id_: str, summary: str, path: str, request: Any, answer: Any) -> Operation:
    whole = {"id": f"chatcmpl-{JOB_ID}", "created": 1790000001, "model": MODEL, "usage": USAGE}
    described = "The engine's answer; events that end with `data: [DONE]` if `stream` is true."
    return Operation(
        id_,
        "OpenAI",
        summary,
        {
            200: (
                described,
                (Content(answers.CompletionAnswer, {**whole, **answer}), Content(None, None, SSE)),
            )
        },
        KEY,
        Content(schemas.SCHEMAS[path].type, request),
        refusals=_REFUSALS,
    )


def _whole(id_: str, tag: str, summary: str, path: str, request: Any, answer: Content) -> Operation:
    """Nothing of it is streamed."""
    return Operation(
        id_,
        tag,
        summary,
        {200: ("The engine's answer.", (answer,))},
        KEY,
        Content(schemas.SCHEMAS[path].type, request),
        refusals=_REFUSALS,
    )


def _not_kept(id_: str, summary: str) -> Operation:
    """A path of OpenAI's that always refuses, and says why."""
    return Operation(id_, "OpenAI", summary, {}, KEY, refusals=(404,))


ENGINES: Final[dict[tuple[str, str], Operation]] = {
    ("POST", CHAT): _completion(
        "createChatCompletion",
        "Complete a chat",
        CHAT,
        CHAT_EXAMPLE,
        {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant"}}]},
    ),
    ("POST", "/v1/completions"): _completion(
        "createCompletion",
        "Complete a text",
        "/v1/completions",
        {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16},
        {"object": "text_completion", "choices": [{"index": 0, "text": ", there was"}]},
    ),
    ("POST", RESPONSES): Operation(
        "createResponse",
        "OpenAI",
        "Answer an input; nothing is kept of it",
        {
            200: (
                "The engine's answer; typed events up to `response.completed` if `stream` is true.",
                (Content(answers.ResponseAnswer, _RESPONSE), Content(None, None, SSE)),
            )
        },
        KEY,
        Content(
            schemas.SCHEMAS[RESPONSES].type, {"model": MODEL, "input": "Hello!", "max_output_tokens": 16}
        ),
        refusals=_REFUSALS,
    ),
    ("GET", f"{RESPONSES}/{{response_id}}"): _not_kept("getResponse", "Responses are not kept"),
    ("DELETE", f"{RESPONSES}/{{response_id}}"): _not_kept("deleteResponse", "Responses are not kept"),
    ("GET", f"{RESPONSES}/{{response_id}}/input_items"): _not_kept(
        "listResponseInputItems", "Responses are not kept"
    ),
    ("POST", f"{RESPONSES}/{{response_id}}/cancel"): _not_kept("cancelResponse", "Responses are not kept"),
    ("POST", schemas.EMBEDDINGS): _whole(
        "createEmbedding",
        "OpenAI",
        "Embed texts: a vector for each",
        schemas.EMBEDDINGS,
        {"model": "BAAI/bge-m3", "input": ["Hello!", "Good-bye!"], "encoding_format": "float"},
        Content(
            answers.EmbeddingAnswer,
            {
                "object": "list",
                "model": "BAAI/bge-m3",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
                "usage": {"prompt_tokens": 9, "total_tokens": 9},
            },
        ),
    ),
    ("POST", "/tokenize"): _whole(
        "tokenize",
        "Tokens",
        "The tokens of a text, or of a chat with its template around it",
        "/tokenize",
        {"model": MODEL, "prompt": "Hello!", "return_token_strs": True},
        Content(
            answers.Tokenized,
            {"count": 2, "max_model_len": 32768, "tokens": [9707, 0], "token_strs": ["Hello", "!"]},
        ),
    ),
    ("POST", "/detokenize"): _whole(
        "detokenize",
        "Tokens",
        "The text of tokens",
        "/detokenize",
        {"model": MODEL, "tokens": [9707, 0]},
        Content(answers.Detokenized, {"prompt": "Hello!"}),
    ),
}
