"""The documented doors, on Django REST Framework: OpenAI's paths under /v1, jobs, and the cluster's state."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from adrf.views import APIView
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from api import gateway, reading, schemas, steering
from api.authentication import Caller, require_staff
from api.completion import Answer, complete
from api.errors import ApiError, invalid, no_such_model
from jobs import asynchronous
from jobs.interactive import new_job_id


def _gateway(request: Request) -> gateway.Gateway:
    return gateway.of(getattr(request._request, "scope", {}))


def _caller(request: Request) -> Caller:
    return _gateway(request).keys.caller(request.headers.get("Authorization", ""))


async def _staff(request: Request) -> str:
    """Who asks: a staff key, or a staff user with a session in the admin (who changes nothing here: a
    session alone could be ridden by another site). Raises `ApiError` 401 or 403."""
    if request.headers.get("Authorization") or request.method != "GET":
        caller = _caller(request)
        require_staff(caller)
        return f"key {caller.name}"
    user = await request._request.auser()
    if not (user.is_active and user.is_staff):
        _caller(request)  # says what is missing
    return user.get_username()


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


class CompletionView(APIView):
    """``POST /v1/completions`` and ``POST /v1/chat/completions``, streamed (server-sent events) or whole.

    Behind `api.lean` in the usual set-up; with ``GPUTORRENT_LEAN_DOOR=0`` requests come through here.
    """

    async def post(self, request: Request) -> HttpResponseBase:
        answer = await complete(
            _gateway(request),
            request._request.path,
            request.headers.get("Authorization", ""),
            request._request.body,
        )
        response: HttpResponseBase
        if answer.parts is None:
            response = HttpResponse(answer.body, status=answer.status)
        else:
            response = _Stream(answer)
        for name, value in answer.headers:
            response[name.decode()] = value.decode("latin-1")
        return response


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


class JobsView(APIView):
    """``POST /jobs``: accept a request and answer 202 at once; ``GET /jobs/{id}`` has the result later.

    The body is a chat or text completion request as under /v1; the kind follows from its fields, or from
    ``{"url": "/v1/...", "body": {...}}``, as in a line of OpenAI's batch files.
    """

    async def post(self, request: Request) -> Response:
        caller = _caller(request)
        path, body = _unwrap(request._request.body)
        wanted = caller.authorise(schemas.parse(path, body, key=caller.key))
        if wanted.stream:
            raise invalid("An asynchronous job cannot be streamed.", param="stream")
        here = _gateway(request)
        if wanted.model not in here.dispatcher.snapshot.by_model:
            raise no_such_model(wanted.model)
        job_id = new_job_id()
        permit = await here.admit(caller, wanted, deferred=job_id) if caller.limits else None
        try:
            job = await sync_to_async(asynchronous.submit)(wanted, job_id)
        except (DatabaseError, InterfaceError):
            if permit:
                await permit.give_back()
            raise
        headers = {"Location": f"/jobs/{job.id}"}
        headers.update((k.decode(), v.decode()) for k, v in (permit.headers if permit else ()))
        answer = {"id": job.id, "object": "job", "status": job.state, "model": job.model}
        return Response(answer, status=202, headers=headers)


def _unwrap(body: bytes) -> tuple[str, bytes]:
    try:
        whole: Any = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise invalid(f"The body is not a JSON object: {str(e)[:200]}", code="invalid_json") from None
    if "url" in whole or "body" in whole:
        if "url" not in whole or "body" not in whole:
            missing = "body" if "url" in whole else "url"
            raise invalid(
                f"Missing required parameter: '{missing}'.", code="missing_required_parameter", param=missing
            )
        url = msgspec.json.decode(whole["url"])
        if not isinstance(url, str) or url not in schemas.SCHEMAS:
            raise invalid(
                f"'url' must be one of {', '.join(schemas.SCHEMAS)}.", code="invalid_value", param="url"
            )
        return url, bytes(whole["body"])
    return ("/v1/chat/completions" if "messages" in whole else "/v1/completions"), body


class JobView(APIView):
    """``GET /jobs/{id}``: where a job stands, and the result of an asynchronous one. Keys see their own."""

    async def get(self, request: Request, job: str) -> Response:
        caller = _caller(request)
        found = await sync_to_async(reading.job)(job, key=None if caller.staff else caller.key)
        if found is None:
            raise invalid("No such job.", code="job_not_found", status=404)
        return Response(found)


class WorkersView(APIView):
    """``GET /workers``: every node with its GPUs, models, state and load. For staff."""

    async def get(self, request: Request) -> Response:
        await _staff(request)
        return Response({"object": "list", "data": await sync_to_async(reading.workers)()})


class WorkerView(APIView):
    """``POST /workers/{id}/{verb}``: approve, drain, resume or revoke a node. For staff."""

    async def post(self, request: Request, node: str, verb: str) -> Response:
        by = await _staff(request)
        return Response(await sync_to_async(steering.steer)(node, verb, by))


class WorkerModelView(APIView):
    """``POST /workers/{id}/models/{verb}`` with ``{"model": NAME}``: load, unload, pin, unpin."""

    async def post(self, request: Request, node: str, verb: str) -> Response:
        by = await _staff(request)
        try:
            model = msgspec.json.decode(request._request.body, type=steering.ModelBody).model
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise invalid(
                f'Send {{"model": NAME}}: {str(e)[:200]}', code="invalid_value", param="model"
            ) from None
        return Response(await sync_to_async(steering.steer_model)(node, verb, model, by), status=202)


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
        checks = await reading.readiness(_gateway(request).dispatcher)
        ready = all(state == "ok" for state in checks.values())
        return Response({"status": "ok" if ready else "unavailable", **checks}, status=200 if ready else 503)


def no_such_path(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """404 in OpenAI's shape."""
    error = invalid(f"Unknown path: {request.path[:200]}", code="unknown_url", status=404)
    return JsonResponse(error.data(), status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    """500 in OpenAI's shape; the log has the traceback."""
    error = ApiError(500, "server_error", "internal_error", "an internal error occurred")
    return JsonResponse(error.data(), status=500)
