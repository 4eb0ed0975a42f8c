"""The doors of ``/jobs``: submit a request nobody waits for, look at jobs of either kind, end them."""

from __future__ import annotations

import asyncio
import datetime
import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from adrf.views import APIView
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import QueryDict
from rest_framework.request import Request
from rest_framework.response import Response

from api import gateway, priority, records, schemas
from api.authentication import Caller, require_staff
from api.completion import must_be_json
from api.errors import ApiError, invalid, no_such_model
from api.gateway import Gateway
from api.limits import Permit
from api.records import Reader, Wanted
from api.views import headers_of
from gputorrent import ledger, tracing
from jobs import asynchronous, cancelling, idempotency
from jobs.idempotency import Mark
from jobs.interactive import Request as Wish
from jobs.interactive import new_job_id
from jobs.models import Job, JobState

_QUEUE_SECONDS = 0.5
_MOST_LISTED = 100
_IDEMPOTENCY_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")


class JobsView(APIView):
    """``POST /jobs``: accept a request and answer 202 at once; ``GET /jobs/{id}`` has the result later.
    ``GET /jobs``: jobs of this key, newest first (staff: of every key).

    The body is a request as under /v1 for a chat, a text completion or embeddings; the kind follows from
    its fields, or from ``{"url": "/v1/...", "body": {...}}``, as in a line of OpenAI's batch files.
    """

    async def post(self, request: Request) -> Response:
        here, caller = _who(request)
        must_be_json(headers_of(request))
        path, body = _unwrap(request._request.body)
        wanted = caller.authorise(schemas.parse(path, body, key=caller.key))
        wanted = priority.apply(wanted, caller, request.headers.get(priority.HEADER, ""))
        if wanted.stream:
            raise invalid("An asynchronous job cannot be streamed.", param="stream")
        mark = _mark(wanted, request.headers.get("Idempotency-Key"))
        if mark and (first := await ledger.ask(_earlier, mark)):
            return _accepted(first, replayed=True)
        if wanted.model not in here.dispatcher.outlook.snapshot.by_model:
            raise no_such_model(wanted.model)
        here.dispatcher.outlook.check_held_off(wanted)
        give_up_at = time.monotonic() + ledger.ANSWER_SECONDS
        job_id = new_job_id()
        permit = await here.admit(caller, wanted, deferred=job_id) if caller.limits else None
        try:
            job, new = await ledger.ask(_accept, wanted, mark, job_id, give_up_at)
        except (DatabaseError, InterfaceError, ApiError):
            if permit:
                await permit.give_back()
            raise
        if not new:  # the same was sent twice at once
            if permit:
                await permit.give_back()
            return _accepted(job, replayed=True)
        with suppress(ledger.LedgerTimeout):  # the job is safe, and queued a little later
            await ledger.within(_QUEUE_SECONDS, asynchronous.queue, job)
        return _accepted(job, permit)

    async def get(self, request: Request) -> Response:
        _, caller = _who(request)
        wanted = _wanted(request._request.GET, caller)
        return Response(await ledger.ask(records.page, wanted, _reader(caller)))


class JobView(APIView):
    """``GET /jobs/{id}``: where a job stands, and the result of an asynchronous one. ``DELETE``: end it.

    Both take the id of an answer, too. Keys see their own jobs, staff every job.
    """

    async def get(self, request: Request, job: str) -> Response:
        here, caller = _who(request)
        return Response(await _record(here, await find(here, job, _reader(caller)), caller))

    async def delete(self, request: Request, job: str) -> Response:
        here, caller = _who(request)
        found = await find(here, job, _reader(caller))
        await cancelling.cancel(here.dispatcher, found)
        return Response(await _record(here, await find(here, job, _reader(caller)), caller))


def _mark(wanted: Wish, key: str | None) -> Mark | None:
    """How the request is known again, if it asks for that. Raises `ApiError` 400."""
    if key is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        message = "The header Idempotency-Key must be 1 to 255 printable characters of ASCII."
        raise invalid(message, param="idempotency-key")
    return idempotency.mark(wanted, key)


def _earlier(mark: Mark) -> Job | None:
    try:
        return idempotency.earlier(mark)
    except idempotency.Reused:
        raise _reused() from None


def _accept(wanted: Wish, mark: Mark | None, job_id: str, give_up_at: float) -> tuple[Job, bool]:
    if mark is None:
        return asynchronous.accept(wanted, give_up_at, job_id), True
    try:
        return idempotency.accept(wanted, mark, job_id, give_up_at)
    except idempotency.Reused:
        raise _reused() from None


def _reused() -> ApiError:
    return ApiError("idempotency_key_reused", "This Idempotency-Key was sent with another request before.")


def _accepted(job: Job, permit: Permit | None = None, *, replayed: bool = False) -> Response:
    answer = {"id": job.id, "object": "job", "state": job.state, "status": job.state, "model": job.model}
    headers = {"Location": f"/jobs/{job.id}"}
    headers.update((k.decode(), v.decode()) for k, v in (permit.headers if permit else ()))
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(answer, status=202, headers=headers)


def _who(request: Request) -> tuple[Gateway, Caller]:
    here = gateway.of(getattr(request._request, "scope", {}))
    caller = here.keys.caller(request.headers.get("Authorization", ""))
    tracing.current().key = caller.name
    return here, caller


def _reader(caller: Caller) -> Reader:
    return Reader(caller.key, caller.staff)


async def find(here: Gateway, job: str, reader: Reader) -> Job:
    """The job's row, as new as may be. Raises `ApiError` 404."""
    job_id = records.plain_id(job)
    if job_id is not None:
        await here.dispatcher.recorder.written(job_id)
        found = await ledger.ask(records.find, job_id, reader)
        if found is None and records.is_young(job_id):
            # Another process may have answered it a moment ago; its row follows.
            await asyncio.sleep(settings.RECORD_SECONDS + 0.1)
            found = await ledger.ask(records.find, job_id, reader)
        if found is not None:
            return found
    raise ApiError("job_not_found", "No such job.")


async def _record(here: Gateway, job: Job, caller: Caller) -> dict[str, Any]:
    answer = await ledger.ask(records.whole, job, _reader(caller))
    answer["queue"] = await records.queue_of(job.id, job.state, here.dispatcher.board)
    return answer


# -- what a client may send ----------------------------------------------------------------------------


def _unwrap(body: bytes) -> tuple[str, bytes]:
    try:
        whole: Any = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        url = msgspec.json.decode(whole.get("url", b"null"))  # what is kept raw was not looked at as text
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise invalid(f"The body is not a JSON object: {str(e)[:200]}", code="invalid_json") from None
    if "url" in whole or "body" in whole:
        if "url" not in whole or "body" not in whole:
            missing = "body" if "url" in whole else "url"
            raise invalid(
                f"Missing required parameter: '{missing}'.", code="missing_required_parameter", param=missing
            )
        if not isinstance(url, str) or url not in schemas.DEFERRABLE:
            raise invalid(
                f"'url' must be one of {', '.join(schemas.DEFERRABLE)}.", code="invalid_value", param="url"
            )
        return url, bytes(whole["body"])
    if "messages" in whole:
        return "/v1/chat/completions", body
    return (schemas.EMBEDDINGS if "input" in whole else "/v1/completions"), body


def _wanted(query: QueryDict, caller: Caller) -> Wanted:
    """The parameters of a list. Raises `ApiError` 400 naming the one that is wrong, 403 for staff's."""
    given: dict[str, Any] = {}
    for name, values in query.lists():
        if name not in _PARAMETERS:
            raise invalid(f"Unknown parameter: '{name[:100]}'.", code="unknown_parameter", param=name[:100])
        if name in _FOR_STAFF:
            require_staff(caller)
        if len(values) > 1:
            raise _bad(name, "it is given more than once")
        try:
            given[name] = _PARAMETERS[name](values[0])
        except ValueError as e:
            raise _bad(name, str(e)) from None
    return Wanted(**given)


def _bad(name: str, why: str) -> ApiError:
    return invalid(f"Invalid value for '{name}': {why}.", code="invalid_value", param=name)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_LISTED):
        raise ValueError(f"expected a number from 1 to {_MOST_LISTED}")
    return int(text)


def _job(text: str) -> str:
    job_id = records.plain_id(text)
    if job_id is None:
        raise ValueError("expected the id of a job")
    return job_id


def _state(text: str) -> str:
    if text not in JobState.values:
        raise ValueError(f"expected one of {', '.join(JobState.values)}")
    return text


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def _moment(text: str) -> datetime.datetime:
    try:
        seconds = float(text)
        if not math.isfinite(seconds):
            raise ValueError
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError("expected seconds since the epoch") from None


def _name(text: str) -> str:
    if not 0 < len(text) <= 200 or "\0" in text:
        raise ValueError("expected a name or an id")
    return text


_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "limit": _limit,
    "after": _job,
    "state": _state,
    "model": _name,
    "asynchronous": _flag,
    "created_after": _moment,
    "created_before": _moment,
    "key": _name,
    "node": _name,
}
_FOR_STAFF = frozenset({"key", "node"})
