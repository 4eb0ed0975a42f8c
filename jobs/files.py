"""Files of callers, stored in the database piece by piece: nothing here holds one whole.

A file is seen by its owner when it is complete. What was begun and never finished is swept up. All of this
blocks on the database.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator
from typing import Final

from django.conf import settings
from django.db.models import QuerySet, Sum
from django.utils import timezone

from jobs.interactive import new_job_id
from jobs.models import BATCH_ENDS, Batch, FileChunk, StoredFile

log = logging.getLogger(__name__)

BATCH: Final = "batch"
BATCH_OUTPUT: Final = "batch_output"
PIECE_BYTES: Final = 1024 * 1024
_LEFT_OVER = datetime.timedelta(hours=1)
_AT_ONCE = 100


class LineTooLong(ValueError):
    """A line is longer than anything that could be sent as a request."""


def begin(key: int | None, filename: str, purpose: str) -> StoredFile:
    """A new, empty file that nobody sees yet."""
    expires_at = timezone.now() + datetime.timedelta(seconds=settings.FILE_TTL_SECONDS)
    return StoredFile.objects.create(
        id=f"file-{new_job_id()}", key_id=key, filename=filename[:255], purpose=purpose, expires_at=expires_at
    )


def append(file: StoredFile, data: bytes) -> None:
    """Add bytes at the end. For one writer: two at once end in an `IntegrityError` of one of them."""
    for at in range(0, len(data), PIECE_BYTES):
        piece = data[at : at + PIECE_BYTES]
        FileChunk.objects.create(file=file, start=file.size + at, data=piece)
    file.size += len(data)
    StoredFile.objects.filter(pk=file.pk).update(size=file.size)


def finish(file: StoredFile, ttl_seconds: float) -> None:
    """Let the owner see it, for so long from its beginning."""
    file.complete = True
    file.expires_at = file.created_at + datetime.timedelta(seconds=ttl_seconds)
    file.save(update_fields=["complete", "expires_at"])


def complete(file: StoredFile, expires_at: datetime.datetime | None = None) -> None:
    """Let the owner see what a batch wrote. Kept until `expires_at` if that is sooner than for any file."""
    file.complete = True
    file.expires_at = min(file.expires_at, expires_at or file.expires_at)
    file.save(update_fields=["complete", "expires_at"])


def delete(file_id: str) -> bool:
    """Delete a file. Returns whether it was there."""
    FileChunk.objects.filter(file_id=file_id).delete()
    return bool(StoredFile.objects.filter(pk=file_id).delete()[0])


def of(key: int) -> QuerySet[StoredFile]:
    """The complete files of a key that have not expired."""
    return StoredFile.objects.filter(key_id=key, complete=True, expires_at__gt=timezone.now())


def is_in_use(file_id: str) -> bool:
    """Whether a batch that has not ended reads it."""
    return Batch.objects.filter(input_file=file_id).exclude(status__in=BATCH_ENDS).exists()


def stored_bytes(key: int) -> int:
    """What a key has in all its files."""
    return int(StoredFile.objects.filter(key_id=key).aggregate(n=Sum("size"))["n"] or 0)


def read(file_id: str, offset: int) -> bytes:
    """Some bytes from `offset` on, at most a piece; none at the end."""
    chunk = FileChunk.objects.filter(file_id=file_id, start__lte=offset).order_by("-start").first()
    return bytes(chunk.data)[offset - chunk.start :] if chunk else b""


def lines(file_id: str, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each line from `offset` on without its end, and the offset behind it. Raises `LineTooLong`."""
    rest, most = b"", settings.MAX_BODY_BYTES + PIECE_BYTES
    while piece := read(file_id, offset + len(rest)):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            offset += len(line) + 1
            yield offset, line
        if len(rest) > most:
            raise LineTooLong(f"a line has more than {most} bytes")
    if rest:
        yield offset + len(rest), rest


def tidy() -> int:
    """Delete files and batches whose time is over, and uploads that broke off. Returns how many files.

    A file that an open batch reads stays, and so does what it writes.
    """
    now = timezone.now()
    over = now - datetime.timedelta(seconds=settings.FILE_TTL_SECONDS)
    Batch.objects.filter(status__in=BATCH_ENDS, ended_at__lt=over).delete()
    used: set[str] = set()
    for names in Batch.objects.exclude(status__in=BATCH_ENDS).values_list(
        "input_file", "output_file", "error_file"
    ):
        used.update(names)
    expired = StoredFile.objects.filter(expires_at__lt=now)
    broken = StoredFile.objects.filter(complete=False, created_at__lt=now - _LEFT_OVER)
    found = {id_ for rows in (expired, broken) for id_ in rows.values_list("pk", flat=True)[:_AT_ONCE]}
    return sum([delete(file_id) for file_id in found - used])
