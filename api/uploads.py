"""What `POST /v1/files` sends, on its way into the database.

Django has put the body as it came into a temporary file (a few MiB stay in memory) and parses it from there;
what it finds of the file goes straight into the database, a piece at a time.
"""

from __future__ import annotations

import time
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.files.uploadhandler import FileUploadHandler
from django.db import OperationalError
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParserError

from api.errors import ApiError, invalid
from jobs import files
from jobs.models import StoredFile

SECONDS: Final = 60.0
"""How long storing one file may take."""
HOUR, MONTH = 3600, 2_592_000  # OpenAI's bounds of what may be asked for


class TooSlow(OperationalError):
    """The database takes so long that the caller has been refused meanwhile."""


class _Receiver(FileUploadHandler):
    """Stores the one file of a form."""

    chunk_size = files.PIECE_BYTES // 4

    def __init__(self, key: int, give_up_at: float) -> None:
        super().__init__()
        self.file: StoredFile | None = None
        self._key = key
        self._give_up_at = give_up_at
        self._gathered: list[bytes] = []
        self._bytes = 0

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        if self.field_name != "file" or self.file is not None:
            raise invalid("Send one file, as 'file'.", param="file")
        if files.stored_bytes(self._key) > settings.FILES_PER_KEY_BYTES:
            said = f"The files of this API key have more than {settings.FILES_PER_KEY_BYTES} bytes."
            raise ApiError("file_storage_full", said)
        name = self.file_name or "upload.jsonl"
        self.file = files.begin(self._key, name, files.BATCH)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self._gathered.append(bytes(raw_data))
        self._bytes += len(raw_data)
        if self._bytes > settings.FILE_BYTES:
            raise ApiError("file_too_large", f"A file may have {settings.FILE_BYTES} bytes.", param="file")
        if time.monotonic() > self._give_up_at:
            raise TooSlow("the caller has been refused")
        if sum(map(len, self._gathered)) >= files.PIECE_BYTES:
            self._store()

    def file_complete(self, file_size: int) -> None:
        self._store()

    def _store(self) -> None:
        if self._gathered and self.file is not None:
            files.append(self.file, b"".join(self._gathered))
            self._gathered = []


def store(request: HttpRequest, key: int) -> StoredFile:
    """Read the form that was sent and store its file. Blocks. Raises `ApiError`, `DatabaseError`, and then
    nothing is kept."""
    receiver = _Receiver(key, time.monotonic() + SECONDS)
    request.upload_handlers = [receiver]
    try:
        ttl = _fields(request)
        if receiver.file is None:
            raise invalid(
                "Missing required parameter: 'file'.", code="missing_required_parameter", param="file"
            )
        if not receiver.file.size:
            raise invalid("The file is empty.", param="file")
        files.finish(receiver.file, ttl)
    except BaseException:
        if receiver.file is not None:
            files.delete(receiver.file.id)
        raise
    return receiver.file


def _fields(request: HttpRequest) -> float:
    """Read the form and check what stands beside the file: for how many seconds it is to be kept."""
    try:
        form = request.POST
    except (MultiPartParserError, SuspiciousOperation) as e:
        raise invalid(f"The form cannot be read: {type(e).__name__}.", param=None) from None
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    if unknown := sorted(form.keys() - known):
        said = unknown[0][:80]
        raise invalid(f"Unknown parameter: '{said}'.", code="unknown_parameter", param=said)
    if "purpose" not in form:
        raise invalid(
            "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if form["purpose"] != files.BATCH:
        raise invalid("'purpose' must be batch: no other is offered.", param="purpose")
    if form.get("expires_after[anchor]", "created_at") != "created_at":
        raise invalid("'expires_after.anchor' must be created_at.", param="expires_after")
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return float(settings.FILE_TTL_SECONDS)
    if not (seconds.isascii() and seconds.isdigit() and HOUR <= int(seconds[:9]) <= MONTH):
        said = f"'expires_after.seconds' must be a number from {HOUR} to {MONTH}."
        raise invalid(said, param="expires_after")
    return min(float(seconds), float(settings.FILE_TTL_SECONDS))
