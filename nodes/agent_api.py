"""The door for agents: register, heartbeat, goodbye. Messages and refusals are those of the contract."""

from __future__ import annotations

import logging
import time
from typing import Any, TypeVar

import msgspec
import redis
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from gputorrent.redis import blocking
from nodes import listing, registry
from worker_agent.contract import MAX_NODE_BODY_BYTES, Goodbye, Heartbeat, Refused, Register

log = logging.getLogger(__name__)
Message = TypeVar("Message")


def reached_as(request: Request) -> str:
    """The host name, without port, by which the agent reached us."""
    host: str = request.get_host()
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host


class AgentView(APIView):
    """Speaks the contract: JSON in, JSON out, every refusal a `Refused`."""

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        if isinstance(exc, registry.Refusal):
            return _answer(exc.status, Refused(exc.code, exc.message, exc.retry_after), exc.retry_after)
        if isinstance(exc, redis.RedisError):
            log.warning("redis unavailable error=%s", type(exc).__name__)
            return _answer(503, Refused("redis_unavailable", "the coordinator cannot reach Redis", 2.0), 2.0)
        return super().handle_exception(exc)

    def message(self, request: Request, kind: type[Message]) -> Message:
        """The body as a message of the contract. Raises `Refusal` 413 or 422, naming the field."""
        body = request._request.body
        if len(body) > MAX_NODE_BODY_BYTES:
            raise registry.Refusal(
                413, "too_large", f"the message is larger than {MAX_NODE_BODY_BYTES} bytes"
            )
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise registry.Refusal(422, "invalid_request", f"invalid message: {str(e)[:300]}") from None


def _answer(status: int, message: Any, retry_after: float = 0.0) -> HttpResponse:
    response = HttpResponse(msgspec.json.encode(message), status=status, content_type="application/json")
    if retry_after:
        response["Retry-After"] = str(max(1, round(retry_after)))
    return response


class RegisterView(AgentView):
    """``POST /register``: enrol a new node, or start a known one again."""

    def post(self, request: Request) -> HttpResponse:
        return _answer(200, registry.register(self.message(request, Register), reached_as(request)))


class HeartbeatView(AgentView):
    """``POST /nodes/heartbeat``."""

    def post(self, request: Request) -> HttpResponse:
        arrived = time.monotonic()
        node = registry.authenticate(request.headers.get("Authorization", ""))
        beat = self.message(request, Heartbeat)
        answer = registry.beat(node, beat, reached_as(request))
        listing.take(blocking(), node.pk, beat, arrived)
        return _answer(200, answer)


class GoodbyeView(AgentView):
    """``POST /nodes/goodbye``."""

    def post(self, request: Request) -> HttpResponse:
        node = registry.authenticate(request.headers.get("Authorization", ""))
        registry.goodbye(node, self.message(request, Goodbye))
        return HttpResponse(status=204)
