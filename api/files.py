"""The doors of ``/v1/files``: what batches read and write. Keys see their own files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final

from adrf.views import APIView
from django.http import HttpResponseBase, StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from api import uploads
from api.errors import ApiError
from api.pages import Page
from api.views import _caller, _gateway, headers_of
from gputorrent import ledger
from jobs import files
from jobs.models import StoredFile

_MOST_LISTED: Final = 10_000
_ID: Final = re.compile(r"file-[0-9a-f]{32}")


class FilesView(APIView):
    """``POST /v1/files``: store a file, sent as a form with `file` and ``purpose=batch``. ``GET``: list them,
    newest first."""

    async def post(self, request: Request) -> Response:
        caller = _caller(request)
        headers = headers_of(request)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"multipart/form-data" or b"content-encoding" in headers:
            raise ApiError("unsupported_media_type", "Send a form: 'Content-Type: multipart/form-data'.")
        async with _gateway(request).uploads:
            file = await ledger.within(uploads.SECONDS + 5, uploads.store, request._request, caller.key)
        return Response(show(file))

    async def get(self, request: Request) -> Response:
        caller = _caller(request)
        page = Page(request._request.GET, most=_MOST_LISTED, usual=_MOST_LISTED, more={"purpose": "purpose"})
        return Response(await ledger.ask(page.of, files.of(caller.key), show))


class FileView(APIView):
    """``GET /v1/files/{id}``: what is known of a file. ``DELETE``: drop it."""

    async def get(self, request: Request, file: str) -> Response:
        return Response(show(await _find(request, file)))

    async def delete(self, request: Request, file: str) -> Response:
        found = await _find(request, file)
        if await ledger.ask(files.is_in_use, found.id):
            raise ApiError("file_in_use", "A batch that has not ended reads this file.")
        await ledger.ask(files.delete, found.id)
        return Response({"id": found.id, "object": "file", "deleted": True})


class FileContentView(APIView):
    """``GET /v1/files/{id}/content``: the bytes, piece by piece."""

    async def get(self, request: Request, file: str) -> HttpResponseBase:
        found = await _find(request, file)
        first = await ledger.ask(files.read, found.id, 0)
        if not first and found.size:
            raise no_such_file()  # deleted since: while nothing is sent, that can still be said
        response = StreamingHttpResponse(_pieces(found, first), content_type="application/octet-stream")
        response["Content-Length"] = str(found.size)
        return response


async def _pieces(file: StoredFile, first: bytes) -> AsyncIterator[bytes]:
    """Raises where a piece is gone: the connection breaks, so that nobody takes half of a file for all."""
    yield first
    at = len(first)
    while at < file.size:
        piece = await ledger.ask(files.read, file.id, at)
        if not piece:
            raise ConnectionError(f"{file.id} was deleted while it was read")
        yield piece
        at += len(piece)


async def _find(request: Request, file_id: str) -> StoredFile:
    caller = _caller(request)
    found = await ledger.ask(find, file_id, caller.key)
    if found is None:
        raise no_such_file()
    return found


def find(file_id: str, key: int) -> StoredFile | None:
    """A file of a key. Blocks on the database."""
    return files.of(key).filter(pk=file_id).first() if _ID.fullmatch(file_id) else None


def no_such_file(param: str | None = None) -> ApiError:
    """The same for one that is not there and one that belongs to somebody else."""
    return ApiError("file_not_found", "No such file.", param=param)


def show(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
