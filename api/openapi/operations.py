"""What each method of each path does: the table that the schema is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from api import errors, schemas, steering
from api.openapi import answers
from jobs.errors import JobError
from worker_agent import contract

JSON: Final = "application/json"
SSE: Final = "text/event-stream"
TEXT: Final = "text/plain"
MSGPACK: Final = "application/msgpack"

KEY: Final = ("apiKey",)
STAFF: Final = ("staffKey",)
STAFF_OR_SESSION: Final = ("staffKey", "session")
NODE: Final = ("nodeSecret",)
SECURITY: Final[dict[str, dict[str, Any]]] = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "Any API key."},
    "staffKey": {"type": "http", "scheme": "bearer", "description": "An API key of staff."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "sessionid",
        "description": "A staff user's session in the admin. For reading only.",
    },
    "metricsToken": {"type": "http", "scheme": "bearer", "description": "GPUTORRENT_METRICS_TOKEN."},
    "nodeSecret": {"type": "http", "scheme": "bearer", "description": "A node's id and secret."},
}


@dataclass(frozen=True)
class Content:
    """A body: its type (None: not described further), its media type, an example."""

    kind: Any
    example: Any = None
    media: str = JSON


@dataclass(frozen=True)
class Query:
    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True)
class Operation:
    id: str
    tag: str
    summary: str
    responses: dict[int, tuple[str, Sequence[Content]]]
    """Status -> in words, and what may come as body."""
    security: tuple[str, ...] = ()
    request: Content | None = None
    refusals: tuple[int, ...] = ()
    """Statuses of refusals besides those that every operation may have."""
    refusal: Any = answers.Error
    query: tuple[Query, ...] = ()


def request_type(path: str) -> Any:
    """The type that a request to `path` under /v1 is checked by."""
    schema = schemas.SCHEMAS[path]
    return getattr(schema, "type", schema)


def ends() -> dict[int, list[str]]:
    """How a job may end without an answer: HTTP status -> codes."""
    found: dict[int, list[str]] = {}
    for kind in JobError.__subclasses__():
        found.setdefault(errors.of_job(kind("")).status, []).append(kind.code)
    return found


_CHAT: Final = "/v1/chat/completions"
_CHAT_EXAMPLE: Final = {"model": "Qwen/Qwen3-8B", "messages": [{"role": "user", "content": "Hello!"}]}
_JOB_ID: Final = "0193a7c5d3b97e6f8a1b2c3d4e5f6071"
_USAGE: Final = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
_RECORD: Final = {
    "id": _JOB_ID,
    "object": "job",
    "status": "completed",
    "model": "Qwen/Qwen3-8B",
    "url": _CHAT,
    "stream": False,
    "asynchronous": False,
    "created": 1790000000.25,
    "placed": 1790000000.252,
    "first_token": 1790000000.5,
    "finished": 1790000001.75,
    "why": None,
    "attempts": [
        {
            "number": 1,
            "node": "lab-4090",
            "outcome": "done",
            "reason": None,
            "claimed": 1790000000.25,
            "placed": 1790000000.252,
            "finished": 1790000001.75,
        }
    ],
    "usage": _USAGE,
    "error": None,
}
_MODEL: Final = {
    "id": "Qwen/Qwen3-8B",
    "object": "model",
    "created": 1790000000,
    "owned_by": "gputorrent",
    "max_model_len": 32768,
    "nodes": 2,
}


def _completion(id_: str, summary: str, path: str, request: Any, answer: Any) -> Operation:
    whole = {"id": f"chatcmpl-{_JOB_ID}", "created": 1790000001, "model": "Qwen/Qwen3-8B", "usage": _USAGE}
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
        Content(request_type(path), request),
        refusals=(400, 404, 413, 415, *ends()),
    )


def _page(*more: tuple[str, str, dict[str, Any]]) -> tuple[Query, ...]:
    return tuple(Query(*each) for each in more)


_STRING: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}

TABLE: Final[dict[tuple[str, str], Operation]] = {
    ("POST", _CHAT): _completion(
        "createChatCompletion",
        "Complete a chat",
        _CHAT,
        _CHAT_EXAMPLE,
        {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant"}}]},
    ),
    ("POST", "/v1/completions"): _completion(
        "createCompletion",
        "Complete a text",
        "/v1/completions",
        {"model": "Qwen/Qwen3-8B", "prompt": "Once upon a time", "max_tokens": 16},
        {"object": "text_completion", "choices": [{"index": 0, "text": ", there was"}]},
    ),
    ("GET", "/v1/models"): Operation(
        "listModels",
        "OpenAI",
        "Models that live nodes serve now",
        {200: ("", (Content(answers.ModelList, {"object": "list", "data": [_MODEL]}),))},
        KEY,
    ),
    ("GET", "/v1/models/{model}"): Operation(
        "getModel",
        "OpenAI",
        "One model; its name may contain slashes",
        {200: ("", (Content(answers.ModelCard, _MODEL),))},
        KEY,
        refusals=(404,),
    ),
    ("GET", "/v1/usage"): Operation(
        "getUsage",
        "OpenAI",
        "What a key has used",
        {200: ("", (Content(answers.UsageList), Content(None, None, "text/csv")))},
        KEY,
        refusals=(400, 403),
        query=_page(
            ("start", "First day, UTC (2026-11-01).", _STRING),
            ("end", "Last day, UTC, included.", _STRING),
            ("group_by", "Of day, model and (staff) key, with commas between.", _STRING),
            ("format", "json or csv.", {"type": "string", "enum": ["json", "csv"]}),
            ("key", "Another key's number, or `all`; for staff.", _STRING),
        ),
    ),
    ("POST", "/jobs"): Operation(
        "createJob",
        "Jobs",
        "Accept a request that nobody waits for; the body as under /v1, or `{url, body}`",
        {
            202: (
                "Committed; `Location` has its path.",
                (
                    Content(
                        answers.JobAccepted,
                        {"id": _JOB_ID, "object": "job", "status": "pending", "model": "Qwen/Qwen3-8B"},
                    ),
                ),
            )
        },
        KEY,
        Content(None, {"url": _CHAT, "body": _CHAT_EXAMPLE}),
        refusals=(400, 404, 413, 415, 422, 429),
    ),
    ("GET", "/jobs"): Operation(
        "listJobs",
        "Jobs",
        "Own jobs, newest first",
        {
            200: (
                "",
                (
                    Content(
                        answers.JobList,
                        {
                            "object": "list",
                            "data": [_RECORD],
                            "first_id": _JOB_ID,
                            "last_id": _JOB_ID,
                            "has_more": False,
                        },
                    ),
                ),
            )
        },
        KEY,
        refusals=(400, 403),
        query=_page(
            ("limit", "1 to 100.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
            ("after", "A job's id: only older ones.", _STRING),
            ("state", "", {"type": "string", "enum": list(answers.State.__args__)}),  # type: ignore[attr-defined]
            ("model", "", _STRING),
            ("asynchronous", "", {"type": "string", "enum": ["true", "false"]}),
            ("created_after", "Seconds since the epoch.", _NUMBER),
            ("created_before", "Seconds since the epoch.", _NUMBER),
            ("key", "Id or name; for staff.", _STRING),
            ("node", "Id or name; for staff.", _STRING),
        ),
    ),
    ("GET", "/jobs/{job}"): Operation(
        "getJob",
        "Jobs",
        "Where a job stands; takes the id of any answer",
        {200: ("", (Content(answers.JobRecord, _RECORD),))},
        KEY,
        refusals=(404,),
    ),
    ("DELETE", "/jobs/{job}"): Operation(
        "cancelJob",
        "Jobs",
        "End a job, in whatever state it is; repeated, it changes nothing",
        {200: ("The job as it is now.", (Content(answers.JobRecord, {**_RECORD, "status": "cancelled"}),))},
        KEY,
        refusals=(404,),
    ),
    ("GET", "/workers"): Operation(
        "listWorkers",
        "Cluster",
        "Every node with its GPUs, models, state and load",
        {200: ("", (Content(answers.WorkerList),))},
        STAFF_OR_SESSION,
        refusals=(403,),
    ),
    ("POST", "/workers/{node}/{verb}"): Operation(
        "steerWorker",
        "Cluster",
        "Approve, drain, resume or revoke a node",
        {
            200: (
                "",
                (
                    Content(
                        answers.Steered,
                        {"id": "0f" * 8, "name": "lab-4090", "state": "draining", "changed": True},
                    ),
                ),
            )
        },
        STAFF,
        refusals=(400, 403, 404, 409),
    ),
    ("POST", "/workers/{node}/models/{verb}"): Operation(
        "steerModel",
        "Cluster",
        "Ask a node to load, unload, pin or unpin a model",
        {
            202: (
                "Asked; the node does it in its own time.",
                (
                    Content(
                        answers.Asked,
                        {"id": "0f" * 8, "name": "lab-4090", "model": "Qwen/Qwen3-8B", "asked": "load"},
                    ),
                ),
            )
        },
        STAFF,
        Content(steering.ModelBody, {"model": "Qwen/Qwen3-8B"}),
        refusals=(400, 403, 404, 409, 413, 415),
    ),
    ("GET", "/cluster/status"): Operation(
        "getCluster",
        "Cluster",
        "The whole cluster in one object",
        {200: ("", (Content(answers.Cluster),))},
        STAFF_OR_SESSION,
        refusals=(403,),
    ),
    ("GET", "/metrics"): Operation(
        "getMetrics",
        "Operations",
        "Prometheus' text format 0.0.4",
        {200: ("", (Content(None, None, TEXT),))},
        (*STAFF_OR_SESSION, "metricsToken"),
        refusals=(403,),
    ),
    ("GET", "/healthz"): Operation(
        "getHealth",
        "Operations",
        "The process answers",
        {200: ("", (Content(answers.Health, {"status": "ok"}),))},
    ),
    ("GET", "/readyz"): Operation(
        "getReadiness",
        "Operations",
        "Redis and the database answer too",
        {
            200: ("", (Content(answers.Readiness, {"status": "ok", "redis": "ok", "database": "ok"}),)),
            503: (
                "Something does not answer; `status` and the parts say what.",
                (
                    Content(
                        answers.Readiness,
                        {"status": "unavailable", "redis": "TimeoutError", "database": "ok"},
                    ),
                ),
            ),
        },
    ),
    ("GET", "/schema"): Operation(
        "getSchema", "Operations", "This schema", {200: ("", (Content(None, None, JSON),))}
    ),
    ("POST", "/register"): Operation(
        "registerNode",
        "Agents",
        "Enrol a node, or start a known one again",
        {200: ("", (Content(contract.Registered),))},
        (),
        Content(contract.Register),
        refusals=(401, 403, 409, 413, 422, 426),
        refusal=contract.Refused,
    ),
    ("POST", "/nodes/heartbeat"): Operation(
        "beat",
        "Agents",
        "A node's heartbeat",
        {200: ("", (Content(contract.BeatReply),))},
        NODE,
        Content(contract.Heartbeat),
        refusals=(403, 409, 413, 422),
        refusal=contract.Refused,
    ),
    ("POST", "/nodes/goodbye"): Operation(
        "sayGoodbye",
        "Agents",
        "An agent has stopped",
        {204: ("Noted.", ())},
        NODE,
        Content(contract.Goodbye, {"incarnation": 3, "reason": "stopping"}),
        refusals=(403, 409, 413, 422),
        refusal=contract.Refused,
    ),
    ("POST", "/nodes/report"): Operation(
        "report",
        "Agents",
        "A node's word on asynchronous work (MessagePack)",
        {204: ("Taken, now or before.", ())},
        NODE,
        Content(None, None, MSGPACK),
        refusals=(403, 409, 422),
        refusal=contract.Refused,
    ),
}
