"""What each method of each path does: the table that the schema is made of."""

from __future__ import annotations

from typing import Any, Final

from api import steering
from api.openapi import answers
from api.openapi.engines import CHAT, CHAT_EXAMPLE, ENGINES, JOB_ID, USAGE
from api.openapi.operation import (
    JSON,
    KEY,
    MSGPACK,
    NODE,
    STAFF,
    STAFF_OR_SESSION,
    TEXT,
    Content,
    Operation,
    Query,
)
from worker_agent import contract

_RECORD: Final = {
    "id": JOB_ID,
    "object": "job",
    "status": "completed",
    "model": "Qwen/Qwen3-8B",
    "url": CHAT,
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
    "usage": USAGE,
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


def _page(*more: tuple[str, str, dict[str, Any]]) -> tuple[Query, ...]:
    return tuple(Query(*each) for each in more)


_STRING: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}

TABLE: Final[dict[tuple[str, str], Operation]] = {
    **ENGINES,
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
                        {"id": JOB_ID, "object": "job", "status": "pending", "model": "Qwen/Qwen3-8B"},
                    ),
                ),
            )
        },
        KEY,
        Content(None, {"url": CHAT, "body": CHAT_EXAMPLE}),
        refusals=(400, 404, 413, 415, 422, 429),
        query=(
            Query(
                "Idempotency-Key",
                "The same key with the same body gives the same job, for 24 hours.",
                {"type": "string", "minLength": 1, "maxLength": 255},
                "header",
            ),
        ),
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
                            "first_id": JOB_ID,
                            "last_id": JOB_ID,
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
