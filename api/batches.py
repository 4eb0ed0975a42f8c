"""The doors of ``/v1/batches``: a file of requests, worked off. Keys see their own batches."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Final, Literal

from adrf.views import APIView
from django.conf import settings
from msgspec import Meta, Struct
from rest_framework.request import Request
from rest_framework.response import Response

from api import files, schemas, uploads
from api.completion import must_be_json
from api.errors import ApiError, invalid
from api.pages import Page
from api.views import _caller, headers_of
from gputorrent import ledger
from jobs import batches
from jobs import files as stored
from jobs.models import Batch, BatchStatus

_MOST_LISTED, _USUAL = 100, 20
_MOST_PAIRS, _MOST_NAME, _MOST_VALUE = 16, 64, 512
_ID: Final = re.compile(r"batch_[0-9a-f]{32}")


class Expiry(Struct, forbid_unknown_fields=True):
    """How long what a batch wrote is kept, from when it can be read; FILE_TTL_SECONDS at most."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=uploads.HOUR, le=uploads.MONTH)]


class BatchBody(Struct, forbid_unknown_fields=True):
    """What `POST /v1/batches` takes."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: Expiry | None = None


class BatchesView(APIView):
    """``POST /v1/batches``: work off the requests of a file within a day. ``GET``: list them."""

    async def post(self, request: Request) -> Response:
        caller = _caller(request)
        must_be_json(headers_of(request))
        wanted = _body(request._request.body)
        return Response(show(await ledger.ask(_create, wanted, caller.key)))

    async def get(self, request: Request) -> Response:
        caller = _caller(request)
        page = Page(request._request.GET, most=_MOST_LISTED, usual=_USUAL)
        return Response(await ledger.ask(page.of, Batch.objects.filter(key_id=caller.key), show))


class BatchView(APIView):
    """``GET /v1/batches/{id}``: how far it is, and its files."""

    async def get(self, request: Request, batch: str) -> Response:
        return Response(show(await _find(request, batch)))


class BatchCancelView(APIView):
    """``POST /v1/batches/{id}/cancel``: stop what is under way; what has been answered is kept."""

    async def post(self, request: Request, batch: str) -> Response:
        found = await _find(request, batch)
        if not await ledger.ask(batches.cancel, found) and found.status != BatchStatus.CANCELLED:
            raise ApiError(
                "batch_has_ended", f"A batch with the status '{found.status}' cannot be cancelled."
            )
        return Response(show(found))


async def _find(request: Request, batch_id: str) -> Batch:
    caller = _caller(request)
    if _ID.fullmatch(batch_id):
        rows = Batch.objects.filter(pk=batch_id, key_id=caller.key)
        if (found := await ledger.ask(rows.first)) is not None:
            return found
    raise ApiError("batch_not_found", "No such batch.")


def _body(body: bytes) -> BatchBody:
    wanted = schemas.convert(body, BatchBody)
    if wanted.endpoint not in schemas.DEFERRABLE:
        raise invalid(f"'endpoint' must be one of {', '.join(schemas.DEFERRABLE)}.", param="endpoint")
    pairs = wanted.metadata or {}
    if len(pairs) > _MOST_PAIRS or any(
        len(k) > _MOST_NAME or len(v) > _MOST_VALUE or "\0" in k + v for k, v in pairs.items()
    ):
        said = f"'metadata' may have {_MOST_PAIRS} entries, names of {_MOST_NAME} and values of {_MOST_VALUE}"
        raise invalid(f"{said} characters.", param="metadata")
    return wanted


def _create(wanted: BatchBody, key: int) -> Batch:
    file = files.find(wanted.input_file_id, key)
    if file is None:
        raise files.no_such_file("input_file_id")
    if file.purpose != stored.BATCH:
        raise invalid("The file was not uploaded with the purpose batch.", param="input_file_id")
    if batches.open_of(key) >= settings.BATCHES_PER_KEY:
        said = f"This API key has {settings.BATCHES_PER_KEY} batches that have not ended."
        raise ApiError("too_many_batches", said)
    seconds = wanted.output_expires_after.seconds if wanted.output_expires_after else 0
    return batches.create(key, file.id, wanted.endpoint, wanted.metadata or {}, seconds)


def show(batch: Batch) -> dict[str, Any]:
    """A batch as OpenAI shows it. Its files are named when it has ended and nothing more is added to them."""
    ended = batch.ended_at is not None
    found = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": None,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file or None if ended else None,
        "error_file_id": batch.error_file or None if ended else None,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.prompt_tokens + batch.completion_tokens,
        },
        "metadata": batch.metadata or None,
    }
    for status in ("completed", "failed", "expired", "cancelled"):
        found[f"{status}_at"] = _seconds(batch.ended_at) if batch.status == status else None
    return found


def _seconds(moment: datetime.datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None
