"""Join a host: a page that makes an enrolment token, shows the one command, and follows whoever comes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec
import redis
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import ADDITION, LogEntry
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from api import signed_in
from dashboard import join_command
from dashboard.guard import page
from dashboard.join_form import JoinForm
from nodes import joining, registry, steering
from nodes.acl import LOOPBACK
from nodes.admin import audit
from nodes.agent_wheel import wheel
from nodes.models import EnrolmentToken, Node

MAKE, APPROVE = "nodes.add_enrolmenttoken", "nodes.change_node"
_PURPOSE = "to let hosts join"


@require_http_methods(["GET", "POST"])
@page(MAKE, _PURPOSE)
@sensitive_variables("secret")
def join(request: HttpRequest) -> HttpResponse:
    """``GET /admin/join/``: what to run there. ``POST``: makes the token, shown once in its command."""
    if request.method != "POST":
        models = request.GET.get("model", "")
        form = JoinForm(initial={"address": request.build_absolute_uri("/").rstrip("/"), "loaded": models})
        return _render(request, "join", form=form)
    form = JoinForm(request.POST)
    if not form.is_valid():
        return _render(request, "join", status=400, form=form)
    token, secret = registry.new_token(
        note=form.cleaned_data["note"],
        expires_in=form.expires_in,
        max_uses=form.cleaned_data["uses"],
        needs_approval=form.cleaned_data["needs_approval"],
    )
    what = "Made on the page for joining a host"
    LogEntry.objects.log_actions(request.user.pk or 0, [token], ADDITION, what, single_object=True)
    wanted = form.wanted
    text = join_command.command(wanted, wheel(), token.pk, secret, _image_tag())
    return _render(
        request,
        "join_follow",
        token=token,
        back=reverse("join-follow", args=[token.pk]),
        command=text,
        again=join_command.start(wanted),
        address=wanted.address,
        engine=wanted.engine,
        warnings=warnings(wanted.address, settings.REDIS_PUBLIC_URL or settings.REDIS_URL),
        options=_options(request, token),
    )


@require_safe
@page(MAKE, _PURPOSE)
def follow(request: HttpRequest, token: int) -> HttpResponse:
    """``GET /admin/join/{token}/``: the same page without the secret, which was shown once."""
    found = get_object_or_404(EnrolmentToken, pk=token)
    return _render(request, "join_follow", token=found, options=_options(request, found))


@require_safe
@page(MAKE, _PURPOSE)
def state(request: HttpRequest, token: int) -> HttpResponse:
    """``GET /admin/join/{token}/state``: how far its hosts are, for the page that follows them."""
    found = get_object_or_404(EnrolmentToken, pk=token)
    return HttpResponse(msgspec.json.encode(joining.report(found)), content_type="application/json")


@require_POST
@page(APPROVE, "to approve nodes")
def approve(request: HttpRequest, token: int, node: str) -> HttpResponse:
    """``POST /admin/join/{token}/approve/{node}``: let a node that came with this token work."""
    found = get_object_or_404(Node, pk=node, token=token)
    try:
        changed = steering.approve(found, request.user.get_username())
    except redis.RedisError:
        return JsonResponse({"error": "Redis is away: try again."}, status=503)
    if changed:
        audit(request, found, "Approved")
    return JsonResponse({"approved": changed, "state": found.state})


def warnings(address: str, redis_url: str) -> list[str]:
    """What will probably go wrong with hosts that are told this address. Pure."""
    here, wire = urlsplit(address), urlsplit(redis_url)
    local = here.hostname in LOOPBACK
    found = []
    if local:
        found.append(
            f"{here.hostname} means the host itself: other hosts need an address that they can reach this "
            "coordinator by."
        )
    if not local and wire.hostname in LOOPBACK:
        found.append(
            f"Hosts will be told to use Redis at {here.hostname}:{wire.port or 6379}. The embedded Redis "
            "listens on this machine alone: set GPUTORRENT_REDIS_BIND, or REDIS_URL to one that they reach."
        )
    if not local and here.scheme == "http":
        found.append("Over http the token, prompts and answers cross the network in the clear: use https.")
    return found


def _image_tag() -> str:
    """The tag of vLLM's image that goes with the version we pin."""
    lines = (settings.BASE_DIR / "requirements" / "engine-cuda.txt").read_text(encoding="utf-8").splitlines()
    pinned = next((line.partition("==")[2] for line in lines if line.startswith("vllm==")), "")
    return f"v{pinned}" if pinned else "latest"


def _options(request: HttpRequest, token: EnrolmentToken) -> dict[str, Any]:
    """What the page's script needs to know."""
    any_node = "0" * 16
    return {
        "state": reverse("join-state", args=[token.pk]),
        "approve": reverse("join-approve", args=[token.pk, any_node])
        if request.user.has_perm(APPROVE)
        else "",
        "anyNode": any_node,
        "node": reverse("admin:nodes_node_change", args=[any_node])
        if request.user.has_perm("nodes.view_node")
        else "",
        "playground": reverse("playground") if request.user.has_perm(signed_in.PERMISSION) else "",
    }


def _render(request: HttpRequest, template: str, status: int = 200, **context: Any) -> HttpResponse:
    everything = {**admin.site.each_context(request), "title": "Join a host", **context}
    response = render(request, f"dashboard/{template}.html", everything, status=status)
    response["Cache-Control"] = "no-store"  # the secret is in it
    return response
