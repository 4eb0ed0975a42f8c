"""Refusals as a caller sees them, in OpenAI's shape. What each means is in `api.error_codes`."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

import msgspec
import redis
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response

from api.error_codes import CODES, Code
from gputorrent import tracing
from jobs.errors import BrokerUnavailable, JobError

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_OF_DJANGO: Final[dict[type[Exception], str]] = {
    Http404: "not_found",
    exceptions.NotFound: "not_found",
    PermissionDenied: "insufficient_permissions",
    exceptions.PermissionDenied: "insufficient_permissions",
    exceptions.ParseError: "invalid_json",
    exceptions.UnsupportedMediaType: "unsupported_media_type",
    SuspiciousOperation: "bad_request",
}
"""What Django and its REST framework raise by themselves."""


class ApiError(Exception):
    """A refusal with a code of the table, which gives its status and type.

    `status` stands in for the table's where the code covers several (an engine's 4xx). `retry_after` in
    seconds becomes the header, as a whole number of at least 1. Raises KeyError for a code that is in no row.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        row = CODES[code]
        self.code = code
        self.type = row.type
        self.status = status or row.status
        self.message = message
        self.param = param or row.param
        self.headers = [*(headers or []), *_advice(row, retry_after)]

    def data(self) -> dict[str, Any]:
        """The body as an object. What is not the caller's fault names the request, for who is told of it."""
        message = self.message
        if self.status >= 500 and (request := tracing.request_id()):
            message = f"{message} (request id {request})"
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(self.data())


def _advice(row: Code, retry_after: float | None) -> Headers:
    """What is wanted instead, when to try again, and whether clients that do so by themselves should."""
    headers: Headers = []
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if retry_after:
        headers.append((b"retry-after", str(max(1, round(retry_after))).encode()))
    if not row.retry:
        headers.append((b"x-should-retry", b"false"))
    return headers


def invalid(message: str, *, code: str = "invalid_value", param: str | None = None) -> ApiError:
    """The caller's mistake: a 4xx of the table."""
    return ApiError(code, message, param=param)


def unauthorized(message: str) -> ApiError:
    """The key is missing or wrong."""
    return ApiError("invalid_api_key", message)


def rate_limited(message: str, headers: Headers, retry_after: float | None) -> ApiError:
    """A limit for each minute, or of requests at once, is reached. Without `retry_after` (seconds) no
    waiting will help: the request is larger than the limit."""
    return _too_many("rate_limit_exceeded", message, headers, retry_after)


def quota_exceeded(message: str, headers: Headers, retry_after: float | None) -> ApiError:
    """A budget of tokens for a day or a month is used up."""
    return _too_many("insufficient_quota", message, headers, retry_after)


def _too_many(code: str, message: str, headers: Headers, retry_after: float | None) -> ApiError:
    """Without a time to wait there is nothing to wait for, and clients are told so."""
    if retry_after is None:
        return ApiError(code, message, headers=[(b"x-should-retry", b"false"), *headers])
    return ApiError(code, message, retry_after=math.ceil(retry_after), headers=headers)


def of_job(error: JobError) -> ApiError:
    """The refusal that a caller gets for a job's end."""
    return ApiError(error.code, str(error), retry_after=error.retry_after)


def no_such_model(model: str) -> ApiError:
    """The same for a model that nobody offers and for one that the key may not use, as OpenAI does it."""
    message = f"The model `{model[:200]}` does not exist, or you do not have access to it."
    return ApiError("model_not_found", message)


def ledger_unavailable() -> ApiError:
    """The database is away, or does not answer."""
    return ApiError("ledger_unavailable", "The database is unavailable for the moment.", retry_after=2.0)


def unexpected() -> ApiError:
    """Something of ours is broken; the log has the traceback."""
    return ApiError("internal_error", "An internal error occurred.")


def too_large(limit: int) -> ApiError:
    """The body has more than `limit` bytes. The rest of it is not read, so the connection ends."""
    message = f"The request body is larger than {limit} bytes."
    return ApiError("request_too_large", message, headers=[(b"connection", b"close")])


_LEDGER: Final = (DatabaseError, InterfaceError)
_OURS: Final = (DataError, IntegrityError)  # what the database says of a mistake in here


def drf_exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Give what views and Django REST Framework raise the same shape. None: Django answers 500."""
    error = of_exception(exc, context.get("view"))
    if error is None:
        return None
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.data(), status=error.status, headers=headers)


def of_exception(exc: Exception, view: Any = None) -> ApiError | None:
    """The refusal that an exception stands for; None where nobody expected it."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, JobError):
        return of_job(exc)
    if isinstance(exc, redis.RedisError):
        log.warning("redis unavailable error=%s", type(exc).__name__)
        return of_job(BrokerUnavailable("the queue is unavailable for the moment"))
    if isinstance(exc, _LEDGER) and not isinstance(exc, _OURS):
        log.warning("ledger unavailable error=%s", type(exc).__name__)
        return ledger_unavailable()
    if isinstance(exc, exceptions.MethodNotAllowed):
        allow = ", ".join(view.allowed_methods) if view else ""
        return ApiError("method_not_allowed", str(exc.detail), headers=[(b"allow", allow.encode())])
    for kind, code in _OF_DJANGO.items():
        if isinstance(exc, kind):
            return ApiError(code, str(getattr(exc, "detail", "The request was refused."))[:500])
    if isinstance(exc, exceptions.APIException) and exc.status_code < 500:
        return ApiError("bad_request", str(exc.detail)[:500], status=exc.status_code)
    return None
