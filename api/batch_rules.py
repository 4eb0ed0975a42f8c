"""The rules by which a batch's lines are taken, as if each had come by itself: what `jobs.batches` asks."""

from __future__ import annotations

from typing import Any, Final

from django.conf import settings
from msgspec import structs

from api import schemas, streaming, usage
from api.authentication import Caller
from api.error_codes import CODES
from api.errors import ApiError, invalid
from api.models import ApiKey
from jobs.batches import LineRefused, Rules
from jobs.interactive import Request
from jobs.models import Job


def _check(path: str, body: bytes, key: int) -> Request:
    """The request in a line."""
    try:
        if len(body) > settings.MAX_BODY_BYTES:
            raise ApiError("request_too_large", f"The body is larger than {settings.MAX_BODY_BYTES} bytes.")
        wanted = schemas.parse(path, body, key=key)
        caller = _caller_of(key)
        if wanted.stream:
            raise invalid("A request in a batch cannot be streamed.", param="stream")
        return structs.replace(caller.authorise(wanted), priority=caller.priority)
    except ApiError as e:
        raise LineRefused(e.status, e.data()) from None


def _caller_of(key: int) -> Caller:
    # Which nodes may see it, routing asks the key itself: a batch runs for hours, and nodes change.
    row = ApiKey.objects.get(pk=key)
    return Caller(key, row.name, row.staff, 0.0, tuple(row.allowed_models), priority=row.priority)


_OF_ROUTING: Final = {"unknown_model": "model_not_found", "never_fits": "model_unavailable"}


def _refusal(job: Job) -> tuple[int, dict[str, Any]]:
    """What its caller would have been told, if one had waited."""
    if job.http_status and job.http_status >= 400:
        error = streaming.engine_refusal(job.http_status, bytes(job.result or b""))
    else:
        code = _OF_ROUTING.get(job.error_code, job.error_code)
        error = ApiError(code if code in CODES else "upstream_failed", job.error_message)
    return error.status, error.data()


def _may_go_on(key: int) -> bool:
    row = ApiKey.objects.filter(pk=key).first()
    return row is not None and row.state == "valid"


def _may_spend(key: int) -> bool:
    """Whether something is left of the key's budgets. What is under way may go beyond them a little."""
    row = ApiKey.objects.get(pk=key)
    if not (row.tokens_per_day or row.tokens_per_month):
        return True
    spent = usage.spent([key])[key]
    day, month = row.tokens_per_day, row.tokens_per_month
    return not (day and spent.day_tokens >= day) and not (month and spent.month_tokens >= month)


RULES: Final = Rules(_check, _refusal, _may_go_on, _may_spend)
