"""One table from our errors to OpenAI's: status, `type`, `code`. Every refusal under /v1 has this shape."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
import redis
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError
from rest_framework.exceptions import APIException, MethodNotAllowed, NotFound
from rest_framework.response import Response

from jobs.errors import (
    BrokerUnavailable,
    Cancelled,
    FirstTokenTimeout,
    HeldOff,
    JobError,
    KeyRevoked,
    ModelLoading,
    ModelUnavailable,
    NoSuchModel,
    NoWorkers,
    QueueFull,
    QueueTimeout,
    UpstreamFailed,
)

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

JOB_ERRORS: Final[dict[type[JobError], tuple[int, str]]] = {
    NoSuchModel: (404, "invalid_request_error"),
    NoWorkers: (503, "service_unavailable_error"),
    ModelUnavailable: (503, "service_unavailable_error"),
    ModelLoading: (503, "service_unavailable_error"),
    HeldOff: (422, "invalid_request_error"),
    QueueFull: (429, "rate_limit_error"),
    QueueTimeout: (503, "service_unavailable_error"),
    FirstTokenTimeout: (504, "timeout_error"),
    UpstreamFailed: (502, "upstream_error"),
    BrokerUnavailable: (503, "service_unavailable_error"),
    Cancelled: (400, "invalid_request_error"),
    KeyRevoked: (401, "authentication_error"),
}
"""How an end without an answer looks to a caller: HTTP status and OpenAI's `type`. The `code` is ours."""

NO_RETRY: Final = frozenset({Cancelled, FirstTokenTimeout, HeldOff, ModelUnavailable})
"""Ends after which the official clients should not repeat the request by themselves."""


class ApiError(Exception):
    """A refusal as the caller sees it."""

    def __init__(
        self,
        status: int,
        type_: str,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or []

    def body(self) -> bytes:
        """The JSON body, as of OpenAI's API."""
        return msgspec.json.encode(self.data())

    def data(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(
    message: str, *, code: str | None = None, param: str | None = None, status: int = 400
) -> ApiError:
    """The caller's mistake."""
    return ApiError(status, "invalid_request_error", code, message, param=param)


def unauthorized(message: str) -> ApiError:
    return ApiError(
        401,
        "authentication_error",
        "invalid_api_key",
        message,
        headers=[(b"www-authenticate", b"Bearer")],
    )


def of_job(error: JobError) -> ApiError:
    """The refusal that a caller gets for a job's end."""
    status, type_ = JOB_ERRORS[type(error)]
    headers: Headers = []
    if error.retry_after:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if type(error) in NO_RETRY:
        headers.append((b"x-should-retry", b"false"))
    param = "model" if isinstance(error, NoSuchModel) else None
    return ApiError(status, type_, error.code, str(error), param=param, headers=headers)


def no_such_model(model: str) -> ApiError:
    """Nobody here offers the model."""
    return of_job(NoSuchModel(f"The model `{model[:200]}` does not exist: no node offers it."))


def ledger_unavailable() -> ApiError:
    """The database is away, or does not answer."""
    return ApiError(
        503,
        "service_unavailable_error",
        "ledger_unavailable",
        "the database is unavailable for the moment",
        headers=[(b"retry-after", b"2")],
    )


def unexpected() -> ApiError:
    """Something of ours is broken; the log has the traceback."""
    return ApiError(500, "server_error", "internal_error", "an internal error occurred")


_LEDGER: Final = (DatabaseError, InterfaceError)
_OURS: Final = (DataError, IntegrityError)  # what the database says of a mistake in here


def drf_exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Give what Django REST Framework raises the same shape."""
    if isinstance(exc, JobError):
        exc = of_job(exc)
    elif isinstance(exc, redis.RedisError):
        log.warning("redis unavailable error=%s", type(exc).__name__)
        exc = of_job(BrokerUnavailable("the queue is unavailable for the moment"))
    elif isinstance(exc, _LEDGER) and not isinstance(exc, _OURS):
        log.warning("ledger unavailable error=%s", type(exc).__name__)
        exc = ledger_unavailable()
    if isinstance(exc, ApiError):
        headers = {name.decode(): value.decode() for name, value in exc.headers}
        return Response(exc.data(), status=exc.status, headers=headers)
    if isinstance(exc, MethodNotAllowed):
        error = invalid(str(exc.detail), code="method_not_allowed", status=405)
        view = context.get("view")
        allow = ", ".join(view.allowed_methods) if view else ""
        return Response(error.data(), status=405, headers={"Allow": allow})
    if isinstance(exc, NotFound):
        return Response(invalid("no such thing", code="not_found", status=404).data(), status=404)
    if isinstance(exc, APIException):
        code = exc.get_codes()
        error = invalid(
            str(exc.detail)[:500], code=code if isinstance(code, str) else None, status=exc.status_code
        )
        return Response(error.data(), status=exc.status_code)
    return None
