"""What each method of ``/v1/files`` and ``/v1/batches`` does: a part of the table in `operations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from api.batches import BatchBody
from api.openapi.operation import KEY, Content, Operation, Query

Seconds = Annotated[int, Meta(description="Since the epoch.")]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class FileForm(Struct):
    """The form; `expires_after[anchor]` (created_at) and `expires_after[seconds]` may be added."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"}, description="JSON lines.")]
    purpose: Literal["batch"]


class FileCard(Struct):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class FileList(Struct):
    object: Literal["list"]
    data: list[FileCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchProblem(Struct):
    code: str
    message: str
    line: Annotated[int | None, Meta(description="Of the input file, from 1.")]
    param: str | None


class BatchProblems(Struct):
    object: Literal["list"]
    data: list[BatchProblem]


class BatchCounts(Struct):
    total: int
    completed: int
    failed: int


class BatchCard(Struct):
    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchProblems | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: Seconds
    in_progress_at: Seconds | None
    expires_at: Seconds
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    request_counts: BatchCounts
    usage: dict[str, Any]
    metadata: dict[str, str] | None


class BatchList(Struct):
    object: Literal["list"]
    data: list[BatchCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


_ID: Final = "0193a7c5d3b97e6f8a1b2c3d4e5f6071"
_FILE: Final = {
    "id": f"file-{_ID}",
    "object": "file",
    "bytes": 1024,
    "created_at": 1790000000,
    "expires_at": 1790604800,
    "filename": "questions.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}
_TIMES: Final = ("finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_BATCH: Final = {
    "id": f"batch_{_ID}",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": None,
    "errors": None,
    "input_file_id": f"file-{_ID}",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1790000000,
    "in_progress_at": 1790000001,
    "expires_at": 1790086400,
    **{f"{name}_at": None for name in _TIMES},
    "request_counts": {"total": 100, "completed": 40, "failed": 1},
    "usage": {"input_tokens": 900, "output_tokens": 300, "total_tokens": 1200},
    "metadata": {"run": "nightly"},
}
_STRING: Final[dict[str, Any]] = {"type": "string"}
_AFTER: Final = Query("after", "The id of the last one seen.", _STRING)
_ORDER: Final = Query("order", "By age.", {"type": "string", "enum": ["asc", "desc"], "default": "desc"})


def _limit(most: int, usual: int) -> Query:
    return Query("limit", "", {"type": "integer", "minimum": 1, "maximum": most, "default": usual})


def _ok(*contents: Content, words: str = "") -> dict[int, tuple[str, Sequence[Content]]]:
    return {200: (words, contents)}


TABLE: Final[dict[tuple[str, str], Operation]] = {
    ("POST", "/v1/files"): Operation(
        "createFile",
        "Batch",
        "Store a file of requests",
        _ok(Content(FileCard, _FILE)),
        KEY,
        Content(FileForm, media="multipart/form-data"),
        refusals=(400, 413, 415),
    ),
    ("GET", "/v1/files"): Operation(
        "listFiles",
        "Batch",
        "Own files, newest first",
        _ok(Content(FileList)),
        KEY,
        refusals=(400,),
        query=(_limit(10_000, 10_000), _AFTER, _ORDER, Query("purpose", "Only such files.", _STRING)),
    ),
    ("GET", "/v1/files/{file}"): Operation(
        "getFile", "Batch", "What is known of a file", _ok(Content(FileCard, _FILE)), KEY, refusals=(404,)
    ),
    ("DELETE", "/v1/files/{file}"): Operation(
        "deleteFile",
        "Batch",
        "Drop a file that no open batch reads",
        _ok(Content(FileDeleted, {"id": f"file-{_ID}", "object": "file", "deleted": True})),
        KEY,
        refusals=(400, 404),
    ),
    ("GET", "/v1/files/{file}/content"): Operation(
        "getFileContent",
        "Batch",
        "The bytes of a file",
        _ok(Content(None, media="application/octet-stream")),
        KEY,
        refusals=(404,),
    ),
    ("POST", "/v1/batches"): Operation(
        "createBatch",
        "Batch",
        "Work off the requests of a file within 24 hours",
        _ok(Content(BatchCard, {**_BATCH, "status": "validating"})),
        KEY,
        Content(
            BatchBody,
            {"input_file_id": f"file-{_ID}", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        ),
        refusals=(400, 404, 413, 415, 429),
    ),
    ("GET", "/v1/batches"): Operation(
        "listBatches",
        "Batch",
        "Own batches, newest first",
        _ok(Content(BatchList)),
        KEY,
        refusals=(400,),
        query=(_limit(100, 20), _AFTER, _ORDER),
    ),
    ("GET", "/v1/batches/{batch}"): Operation(
        "getBatch",
        "Batch",
        "How far a batch is, and its files",
        _ok(Content(BatchCard, _BATCH)),
        KEY,
        refusals=(404,),
    ),
    ("POST", "/v1/batches/{batch}/cancel"): Operation(
        "cancelBatch",
        "Batch",
        "Stop a batch; what has been answered is kept",
        _ok(Content(BatchCard, {**_BATCH, "status": "cancelling", "cancelling_at": 1790000100})),
        KEY,
        refusals=(400, 404),
    ),
}
