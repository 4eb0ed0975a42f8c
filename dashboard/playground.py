"""The playground: a page on which staff ask models, and its doors.

They are the API's own verbs for another kind of caller: a user with a session, who has a row among the keys
(`api.signed_in`). Whoever closes the page, or presses Stop, ends the job as any caller who leaves does.
"""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.urls import reverse

from api import gateway, jobs, records, signed_in
from api.completion import complete
from api.gateway import Gateway
from api.records import Reader
from api.views import respond
from dashboard.guard import door, page
from dashboard.offers import offer
from jobs import cancelling

_ANY_JOB = "0" * 32


@page(signed_in.PERMISSION, "to ask models in the playground")
def playground(request: HttpRequest) -> HttpResponse:
    """``GET /admin/playground/``."""
    shows_jobs = request.user.has_perm("jobs.view_job")
    options = {
        "ask": reverse("playground"),
        "models": reverse("playground-models"),
        "job": reverse("playground-job", args=[_ANY_JOB]),
        "record": reverse("admin:jobs_job_change", args=[_ANY_JOB]) if shows_jobs else "",
        "anyJob": _ANY_JOB,
    }
    context = {
        **admin.site.each_context(request),
        "title": "Playground",
        "options": options,
        "may_join": request.user.has_perm("nodes.add_enrolmenttoken"),
    }
    return render(request, "dashboard/playground.html", context)


@door("POST")
async def ask(request: HttpRequest, path: str) -> HttpResponseBase:
    """``POST /admin/playground/v1/...``: the body and the answer of ``POST /v1/...``, streams included."""
    here = _gateway(request)
    caller = await signed_in.caller_of(here, request)
    headers = dict(getattr(request, "scope", {}).get("headers", ()))
    return respond(await complete(here, f"/{path}", caller, headers, request.body))


@door("GET")
async def models(request: HttpRequest) -> HttpResponseBase:
    """``GET /admin/playground/models``: every model that the user may ask, and how it stands."""
    here = _gateway(request)
    caller = await signed_in.caller_of(here, request)
    outlook = here.dispatcher.outlook
    names = [name for name in sorted(outlook.snapshot.by_model) if caller.may_use(name)]
    return JsonResponse({"data": [offer(n, outlook.candidates(n, caller.nodes)) for n in names]})


@door("GET", "DELETE")
async def job(request: HttpRequest, job: str) -> HttpResponseBase:
    """``GET /admin/playground/jobs/{id}``: the record of a job of this user's; ``DELETE``: end it."""
    here = _gateway(request)
    caller = await signed_in.caller_of(here, request)
    reader = Reader(caller.key, caller.staff)
    found = await jobs.find(here, job, reader)
    if request.method == "DELETE":
        await cancelling.cancel(here.dispatcher, found)
        found = await jobs.find(here, job, reader)
    return JsonResponse(records.summary(found, reader))


def _gateway(request: HttpRequest) -> Gateway:
    return gateway.of(getattr(request, "scope", {}))
