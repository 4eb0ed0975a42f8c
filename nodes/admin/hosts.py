"""Hosts in the admin: to see them, and to approve, drain, resume and revoke them."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from nodes import steering
from nodes.admin.carried import context, gpu_names, model_names, sensors, vram
from nodes.admin.colours import NODE_COLOURS
from nodes.backoffice import filters, words
from nodes.backoffice.rows import JOIN, ReadOnly, ReadOnlyInline
from nodes.backoffice.steps import Steered, Step, each
from nodes.models import Gpu, Node, NodeEvent, NodeModel, NodeState
from worker_agent.contract import ModelState

_LATEST_EVENTS = 20


class GpuInline(ReadOnlyInline):
    model = Gpu
    columns = [
        "index",
        "name",
        vram,
        words.share_of("utilisation"),
        *sensors,
        "driver",
    ]


class NodeModelInline(ReadOnlyInline):
    model = NodeModel
    show_change_link = True
    columns = ["name", "state", "reason", "slots", "running", "waiting", context, "pinned"]


class NodeEventInline(ReadOnlyInline):
    model = NodeEvent
    verbose_name_plural = f"latest {_LATEST_EVENTS} events"
    columns = [words.when("at", "when"), "was", "now", "reason"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[NodeEvent]:
        """The latest: a node that has lived for long has thousands."""
        events = super().get_queryset(request)
        where = request.resolver_match
        node = str(where.kwargs.get("object_id", "")) if where else ""
        latest = NodeEvent.objects.filter(node=node).order_by("-at", "-id").values("pk")[:_LATEST_EVENTS]
        return events.filter(pk__in=list(latest.values_list("pk", flat=True))).order_by("-at", "-id")


@admin.register(Node)
class NodeAdmin(Steered, ReadOnly):
    when_empty = "A GPU host appears here as soon as its agent registers."
    way_on = JOIN
    list_display = [
        "name",
        "shown_state",
        "gpu_names",
        "vram",
        "model_names",
        "in_flight",
        words.when("last_beat_at", "last beat"),
        "hostname",
    ]
    list_filter = [
        ("state", ChoicesDropdownFilter),
        filters.one_of("models__name", "model", model_names),
        filters.one_of("gpus__name", "GPU", gpu_names),
    ]
    search_fields = ["name", "hostname", "id", "models__name", "gpus__name"]
    search_help_text = "name, host, id, model or GPU"
    inlines = [GpuInline, NodeModelInline, NodeEventInline]
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "name",
                    "shown_state",
                    "state_reason",
                    "drain_wanted",
                    words.when("last_beat_at", "last beat"),
                    "in_flight",
                    "more",
                ]
            },
        ),
        (
            "Host",
            {
                "fields": [
                    "hostname",
                    "os",
                    words.named("arch", "architecture"),
                    words.named("cpu", "CPU"),
                    words.named("cpu_count", "CPU cores"),
                    words.share_of("cpu_usage", "CPU used"),
                    "ram",
                    words.bytes_of("disk_free"),
                    "memory",
                    "labels",
                ]
            },
        ),
        (
            "Identity",
            {
                "fields": [
                    "id",
                    "incarnation",
                    "agent_version",
                    "token",
                    words.when("enrolled_at"),
                    words.when("registered_at"),
                ]
            },
        ),
    ]
    readonly_fields = ["shown_state", "more", "ram", "memory"]
    steps = [
        Step(
            name="approve",
            title="Approve",
            done="Approved",
            icon="check",
            what="It gets work as soon as its models are ready.",
            do=each(steering.approve),
            possible=lambda n: n.state == NodeState.PENDING,
        ),
        Step(
            name="drain",
            title="Drain",
            done="Draining",
            icon="pause",
            what="No new work goes there. What runs finishes. This holds over restarts, until Resume.",
            do=each(steering.drain),
            possible=lambda n: n.state not in {NodeState.REVOKED, NodeState.DRAINING},
        ),
        Step(
            name="resume",
            title="Resume",
            done="Resumed",
            what="It takes work again.",
            do=each(steering.resume),
            possible=lambda n: n.state == NodeState.DRAINING or n.drain_wanted,
        ),
        Step(
            name="revoke",
            title="Revoke",
            done="Revoked",
            icon="block",
            hurts=True,
            what="It is cut off at once and for good: streams from it break off with an error, what has not "
            "begun goes to other nodes. The host can only come back as a new node, with a new token.",
            do=each(steering.revoke),
            possible=lambda n: n.state != NodeState.REVOKED,
        ),
    ]

    def describe(self, row: Node) -> str:
        models = ", ".join(m.name for m in row.models.all() if m.state == ModelState.READY)
        ready = f"; ready: {models}" if models else ""
        return f"{row.get_state_display()}, {row.in_flight} requests under way{ready}"

    @display(description="state", ordering="state")
    def shown_state(self, node: Node) -> str:
        return words.badge(node.get_state_display(), NODE_COLOURS.get(node.state, ""))

    @display(description="RAM free")
    def ram(self, node: Node) -> str:
        return words.share(node.ram_free, node.ram_total)

    @display(description="taken by engines")
    def memory(self, node: Node) -> str:
        return words.share(node.memory_used, node.memory_budget)

    @display(description="more of it")
    def more(self, node: Node) -> str:
        links = [
            ("admin:nodes_nodesample_changelist", "figures over time"),
            ("admin:nodes_nodeevent_changelist", "all events"),
            ("admin:jobs_job_changelist", "its jobs"),
        ]
        shown = [words.link(f"{reverse(page)}?node__id__exact={node.pk}", text) for page, text in links]
        return format_html("{}, {}, {}", *shown)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Node]:
        return super().get_queryset(request).prefetch_related("gpus", "models")

    @display(description="GPUs")
    def gpu_names(self, node: Node) -> str:
        return node.gpus_in_words() or "none (CPU)"

    @display(description="VRAM free")
    def vram(self, node: Node) -> str:
        gpus = list(node.gpus.all())
        return words.share(sum(g.vram_free for g in gpus), sum(g.vram_total for g in gpus))

    @display(description="models")
    def model_names(self, node: Node) -> str:
        return ", ".join(f"{m.name} ({m.state})" for m in node.models.all()) or words.NONE
