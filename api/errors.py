"""One table from our errors to OpenAI's: status, `type`, `code`. Every refusal under /v1 has this shape."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

import msgspec
import redis
from rest_framework.exceptions import APIException, MethodNotAllowed, NotFound
from rest_framework.response import Response

from jobs.errors import (
    BrokerUnavailable,
    FirstTokenTimeout,
    JobError,
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
    QueueFull: (429, "rate_limit_error"),
    QueueTimeout: (503, "service_unavailable_error"),
    FirstTokenTimeout: (504, "timeout_error"),
    UpstreamFailed: (502, "upstream_error"),
    BrokerUnavailable: (503, "service_unavailable_error"),
}
"""How an end without an answer looks to a caller: HTTP status and OpenAI's `type`. The `code` is ours."""

NO_RETRY: Final = frozenset({FirstTokenTimeout, ModelUnavailable})
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


def no_such_model(model: str) -> ApiError:
    """The same for a model that nobody offers and for one that the key may not use, as OpenAI does it."""
    return invalid(
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
        status=404,
    )


def rate_limited(message: str, headers: Headers, retry_after: float | None) -> ApiError:
    """A limit for each minute, or of requests at once, is reached. Without `retry_after` (seconds) no
    waiting will help: the request is larger than the limit."""
    return _too_many("rate_limit_error", "rate_limit_exceeded", message, headers, retry_after)


def quota_exceeded(message: str, headers: Headers, retry_after: float | None) -> ApiError:
    """A budget of tokens for a day or a month is used up."""
    return _too_many("insufficient_quota", "insufficient_quota", message, headers, retry_after)


def _too_many(type_: str, code: str, message: str, headers: Headers, retry_after: float | None) -> ApiError:
    if retry_after is None:
        how: Headers = [(b"x-should-retry", b"false")]
    else:
        how = [(b"retry-after", str(max(1, math.ceil(retry_after))).encode())]
    return ApiError(429, type_, code, message, headers=[*how, *headers])


def of_job(error: JobError) -> ApiError:
    """The refusal that a caller gets for a job's end."""
    status, type_ = JOB_ERRORS[type(error)]
    headers: Headers = []
    if error.retry_after:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if type(error) in NO_RETRY:
        headers.append((b"x-should-retry", b"false"))
    param = "model" if isinstance(error, NoSuchModel) else None
    return ApiError(status, type_, error.code, str(error), param=param, headers=headers)


def unexpected() -> ApiError:
    """Something of ours is broken; the log has the traceback."""
    return ApiError(500, "server_error", "internal_error", "an internal error occurred")


def drf_exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Give what Django REST Framework raises the same shape."""
    if isinstance(exc, JobError):
        exc = of_job(exc)
    elif isinstance(exc, redis.RedisError):
        log.warning("redis unavailable error=%s", type(exc).__name__)
        exc = of_job(BrokerUnavailable("the queue is unavailable for the moment"))
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
