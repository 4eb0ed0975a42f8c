"""The documented doors, on Django REST Framework: OpenAI's paths under /v1, and the cluster's state (those of
jobs: `api.jobs`)."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import msgspec
from adrf.views import APIView
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from api import gateway, reading, staff, steering
from api.authentication import Caller, require_staff
from api.completion import Answer, complete, identify, must_be_json
from api.errors import ApiError, invalid, no_such_model, unauthorized, unexpected
from gputorrent import ledger, tracing


def _gateway(request: Request) -> gateway.Gateway:
    return gateway.of(getattr(request._request, "scope", {}))


def headers_of(request: Request) -> dict[bytes, bytes]:
    return dict(getattr(request._request, "scope", {}).get("headers", ()))


def _caller(request: Request) -> Caller:
    caller = _gateway(request).keys.caller(request.headers.get("Authorization", ""))
    tracing.current().key = caller.name
    return caller


async def _staff(request: Request) -> str:
    """Who asks: a staff key, or a staff user with a session in the admin (who changes nothing here: a
    session alone could be ridden by another site). Raises `ApiError` 401 or 403."""
    if request.headers.get("Authorization") or request.method != "GET":
        caller = _caller(request)
        require_staff(caller)
        return f"key {caller.name}"
    name = await ledger.ask(staff.of_request, request._request)
    if name is None:
        _caller(request)  # says what is missing
        raise unauthorized("This needs a staff key, or a staff user's session in the admin.")
    return name


class _Stream(StreamingHttpResponse):
    """Ends the job when Django closes the response, which it does in another thread."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.parts or (), status=answer.status)
        self._answer = answer
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        super().close()
        if self._answer.on_close and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._answer.on_close)


def respond(answer: Answer) -> HttpResponseBase:
    """The answer as Django sends it, whole or in parts. In the event loop."""
    whole = answer.parts is None
    response = HttpResponse(answer.body, status=answer.status) if whole else _Stream(answer)
    for name, value in answer.headers:
        response[name.decode()] = value.decode("latin-1")
    return response


class CompletionView(APIView):
    """What an engine answers: completions, streamed (server-sent events) or whole, embeddings, and
    what its tokenizer makes of a text.

    Behind `api.lean` in the usual set-up; with ``GPUTORRENT_LEAN_DOOR=0`` requests come through here.
    """

    async def post(self, request: Request) -> HttpResponseBase:
        here, path, headers = _gateway(request), request._request.path, headers_of(request)
        caller = identify(here, path, headers)
        if isinstance(caller, Answer):
            answer = caller
        else:
            answer = await complete(here, path, caller, headers, request._request.body)
        return respond(answer)


class ResponseView(APIView):
    """``GET`` and ``DELETE /v1/responses/{id}``: responses are not kept, and this says so."""

    async def get(self, request: Request, response_id: str) -> Response:
        return _not_kept(request)

    async def delete(self, request: Request, response_id: str) -> Response:
        return _not_kept(request)


class ResponseItemsView(APIView):
    """``GET /v1/responses/{id}/input_items``."""

    async def get(self, request: Request, response_id: str) -> Response:
        return _not_kept(request)


class ResponseCancelView(APIView):
    """``POST /v1/responses/{id}/cancel``."""

    async def post(self, request: Request, response_id: str) -> Response:
        return _not_kept(request)


def _not_kept(request: Request) -> NoReturn:
    _caller(request)
    raise ApiError(
        "response_not_found", "Responses are not kept here. GET /jobs/{id} has the request's record."
    )


class ModelsView(APIView):
    """``GET /v1/models``: what live nodes serve now."""

    async def get(self, request: Request) -> Response:
        caller = _caller(request)
        return Response({"object": "list", "data": reading.models(_gateway(request).dispatcher, caller)})


class ModelView(APIView):
    """``GET /v1/models/{id}``; ids may contain slashes."""

    async def get(self, request: Request, model: str) -> Response:
        caller = _caller(request)
        for found in reading.models(_gateway(request).dispatcher, caller):
            if found["id"] == model:
                return Response(found)
        raise no_such_model(model)


class WorkersView(APIView):
    """``GET /workers``: every node with its GPUs, models, state and load. For staff."""

    async def get(self, request: Request) -> Response:
        await _staff(request)
        return Response({"object": "list", "data": await ledger.ask(reading.workers)})


class WorkerView(APIView):
    """``POST /workers/{id}/{verb}``: approve, drain, resume or revoke a node. For staff."""

    async def post(self, request: Request, node: str, verb: str) -> Response:
        by = await _staff(request)
        return Response(await ledger.ask(steering.steer, node, verb, by))


class WorkerModelView(APIView):
    """``POST /workers/{id}/models/{verb}`` with ``{"model": NAME}``: load, unload, pin, unpin."""

    async def post(self, request: Request, node: str, verb: str) -> Response:
        by = await _staff(request)
        must_be_json(headers_of(request))
        try:
            model = msgspec.json.decode(request._request.body, type=steering.ModelBody).model
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise invalid(
                f'Send {{"model": NAME}}: {str(e)[:200]}', code="invalid_value", param="model"
            ) from None
        return Response(await ledger.ask(steering.steer_model, node, verb, model, by), status=202)


class ClusterStatusView(APIView):
    """``GET /cluster/status``: the whole cluster in one object. For staff."""

    async def get(self, request: Request) -> Response:
        await _staff(request)
        return Response(await reading.cluster(_gateway(request).dispatcher))


class HealthView(APIView):
    """``GET /healthz``: the process answers."""

    async def get(self, request: Request) -> Response:
        return Response({"status": "ok"})


class ReadyView(APIView):
    """``GET /readyz``: Redis and the database answer too; 503 with what does not."""

    async def get(self, request: Request) -> Response:
        checks = await _gateway(request).readiness.look()
        ready = all(state == "ok" for state in checks.values())
        return Response({"status": "ok" if ready else "unavailable", **checks}, status=200 if ready else 503)


def no_such_path(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404 in OpenAI's shape."""
    return _plain(invalid(f"Unknown path: {request.path[:200]}", code="unknown_url"))


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """400 for what Django itself refuses, for example a wrong Host header."""
    return _plain(invalid("The request was refused.", code="bad_request"))


def server_error(request: HttpRequest) -> HttpResponse:
    """500 in OpenAI's shape; the log has the traceback."""
    return _plain(unexpected())


def _plain(error: ApiError) -> HttpResponse:
    response = JsonResponse(error.data(), status=error.status)
    for name, value in error.headers:
        response[name.decode()] = value.decode()
    return response
