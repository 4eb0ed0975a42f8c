"""Nodes in the admin: to see them, and to approve, drain, resume and revoke them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline

from nodes import registry, steering
from nodes.models import EnrolmentToken, Gpu, Node, NodeEvent, NodeModel, NodeSample


def audit(request: HttpRequest, row: Model, what: str) -> None:
    """Note in the admin's log who did what to which row."""
    LogEntry.objects.log_actions(request.user.pk or 0, [row], CHANGE, what, single_object=True)


class ReadOnly(ModelAdmin):
    """Rows that agents or the system write: to look at, not to edit."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _Inline(TabularInline):
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class GpuInline(_Inline):
    model = Gpu
    fields = ["index", "name", "vram", "utilisation", "temperature_c", "power_w", "driver"]
    readonly_fields = ["vram"]

    @admin.display(description="VRAM free / total")
    def vram(self, gpu: Gpu) -> str:
        return f"{filesizeformat(gpu.vram_free)} / {filesizeformat(gpu.vram_total)}"


class NodeModelInline(_Inline):
    model = NodeModel
    fields = [
        "name",
        "state",
        "reason",
        "engine",
        "slots",
        "max_model_len",
        "running",
        "waiting",
        "tokens_per_s",
    ]


class NodeEventInline(_Inline):
    model = NodeEvent
    fields = ["at", "was", "now", "reason"]
    max_num = 0

    def get_queryset(self, request: HttpRequest) -> QuerySet[NodeEvent]:
        return super().get_queryset(request).order_by("-at")


@admin.register(Node)
class NodeAdmin(ReadOnly):
    list_display = [
        "name",
        "state",
        "gpu_names",
        "vram",
        "model_names",
        "in_flight",
        "last_beat_at",
        "hostname",
    ]
    list_filter = ["state", "models__name", "gpus__name"]
    search_fields = ["name", "hostname", "id", "models__name", "gpus__name"]
    inlines = [GpuInline, NodeModelInline, NodeEventInline]
    actions = ["approve", "drain", "resume", "revoke"]
    list_per_page = 50
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "name",
                    "state",
                    "state_reason",
                    "drain_wanted",
                    "last_beat_at",
                    "in_flight",
                    "figures",
                ]
            },
        ),
        (
            "Host",
            {
                "fields": [
                    "hostname",
                    "os",
                    "arch",
                    "cpu",
                    "cpu_count",
                    "cpu_usage",
                    "ram",
                    "disk",
                    "memory",
                    "labels",
                ]
            },
        ),
        (
            "Identity",
            {"fields": ["id", "incarnation", "agent_version", "token", "enrolled_at", "registered_at"]},
        ),
    ]
    readonly_fields = ["figures", "ram", "disk", "memory"]

    @admin.display(description="RAM free / total")
    def ram(self, node: Node) -> str:
        return f"{filesizeformat(node.ram_free)} / {filesizeformat(node.ram_total)}"

    @admin.display(description="disk free")
    def disk(self, node: Node) -> str:
        return filesizeformat(node.disk_free)

    @admin.display(description="engines' memory / budget")
    def memory(self, node: Node) -> str:
        return f"{filesizeformat(node.memory_used)} / {filesizeformat(node.memory_budget)}"

    @admin.display(description="figures over time")
    def figures(self, node: Node) -> str:
        link = reverse("admin:nodes_nodesample_changelist") + f"?node__id__exact={node.pk}"
        return format_html('<a href="{}">{} samples</a>', link, node.samples.count())

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whoever may change nodes may steer them, though nobody edits their rows."""
        return request.user.has_perm("nodes.change_node")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Node]:
        return super().get_queryset(request).prefetch_related("gpus", "models")

    @admin.display(description="GPUs")
    def gpu_names(self, node: Node) -> str:
        return ", ".join(g.name for g in node.gpus.all()) or "none (CPU)"

    @admin.display(description="VRAM free / total")
    def vram(self, node: Node) -> str:
        gpus = list(node.gpus.all())
        if not gpus:
            return "-"
        free, total = sum(g.vram_free for g in gpus), sum(g.vram_total for g in gpus)
        return f"{filesizeformat(free)} / {filesizeformat(total)}"

    @admin.display(description="models")
    def model_names(self, node: Node) -> str:
        return ", ".join(f"{m.name} ({m.state})" for m in node.models.all()) or "-"

    def _each(
        self, request: HttpRequest, nodes: QuerySet[Node], verb: Callable[[Node, str], bool], done: str
    ) -> None:
        made = []
        for node in nodes:
            try:
                changed = verb(node, request.user.get_username())
            except redis.RedisError:
                self.message_user(request, f"{node}: Redis is away, try again", messages.ERROR)
                continue
            if changed:
                made.append(node.name)
                audit(request, node, done)
            else:
                self.message_user(request, f"{node} is {node.state}: nothing to do", messages.WARNING)
        if made:
            self.message_user(request, f"{done}: {', '.join(made)}", messages.SUCCESS)

    @admin.action(description="Approve (let it work)", permissions=["operate"])
    def approve(self, request: HttpRequest, nodes: QuerySet[Node]) -> None:
        self._each(request, nodes, steering.approve, "Approved")

    @admin.action(description="Drain (no new work)", permissions=["operate"])
    def drain(self, request: HttpRequest, nodes: QuerySet[Node]) -> None:
        self._each(request, nodes, steering.drain, "Draining")

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, nodes: QuerySet[Node]) -> None:
        self._each(request, nodes, steering.resume, "Resumed")

    @admin.action(description="Revoke (cut off for good)", permissions=["operate"])
    def revoke(self, request: HttpRequest, nodes: QuerySet[Node]) -> None:
        self._each(request, nodes, steering.revoke, "Revoked")


@admin.register(NodeModel)
class NodeModelAdmin(ReadOnly):
    list_display = [
        "name",
        "node",
        "state",
        "engine",
        "slots",
        "max_model_len",
        "running",
        "tokens_per_s",
        "ttft_ms",
    ]
    list_filter = ["state", "name"]
    search_fields = ["name", "node__name"]
    list_select_related = ["node"]
    actions = ["load", "unload", "pin", "unpin"]

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("nodes.change_node")

    def _each(
        self, request: HttpRequest, rows: QuerySet[NodeModel], verb: Callable[..., None], done: str
    ) -> None:
        for row in rows.select_related("node"):
            try:
                verb(row.node, row.name, request.user.get_username())
            except (registry.Refusal, redis.RedisError) as e:
                why = str(e) if isinstance(e, registry.Refusal) else "Redis is away, try again"
                self.message_user(request, f"{row}: {why}", messages.ERROR)
                continue
            audit(request, row, done)
            self.message_user(request, f"{done}: {row}", messages.SUCCESS)

    @admin.action(description="Load", permissions=["operate"])
    def load(self, request: HttpRequest, rows: QuerySet[NodeModel]) -> None:
        self._each(request, rows, steering.load, "Asked to load")

    @admin.action(description="Unload", permissions=["operate"])
    def unload(self, request: HttpRequest, rows: QuerySet[NodeModel]) -> None:
        self._each(request, rows, steering.unload, "Asked to unload")

    @admin.action(description="Pin (never unload for another model)", permissions=["operate"])
    def pin(self, request: HttpRequest, rows: QuerySet[NodeModel]) -> None:
        self._each(request, rows, steering.pin, "Pinned")

    @admin.action(description="Unpin", permissions=["operate"])
    def unpin(self, request: HttpRequest, rows: QuerySet[NodeModel]) -> None:
        self._each(request, rows, steering.unpin, "Unpinned")


@admin.register(NodeSample)
class NodeSampleAdmin(ReadOnly):
    list_display = [
        "at",
        "node",
        "in_flight",
        "tokens_per_s",
        "ttft_ms",
        "kv_cache_usage",
        "gpu_utilisation",
        "gpu_temperature_c",
        "cpu_usage",
    ]
    list_filter = ["node"]
    list_select_related = ["node"]
    date_hierarchy = "at"
    show_full_result_count = False


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(ModelAdmin):
    list_display = [
        "prefix",
        "note",
        "state",
        "uses",
        "max_uses",
        "needs_approval",
        "expires_at",
        "created_at",
    ]
    list_filter = ["needs_approval"]
    search_fields = ["prefix", "note"]
    fields = ["note", "max_uses", "expires_at", "needs_approval"]
    actions = ["revoke_tokens"]

    @admin.display(description="state")
    def state(self, token: EnrolmentToken) -> str:
        if token.revoked_at:
            return "revoked"
        if token.expires_at and token.expires_at <= timezone.now():
            return "expired"
        return "used up" if token.max_uses and token.uses >= token.max_uses else "valid"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: EnrolmentToken, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        row, secret = registry.new_token(
            note=obj.note, max_uses=obj.max_uses, needs_approval=obj.needs_approval
        )
        EnrolmentToken.objects.filter(pk=row.pk).update(expires_at=obj.expires_at)
        obj.pk, obj.prefix, obj.token_hash = row.pk, row.prefix, row.token_hash
        self.message_user(request, f"The token, shown this once: {secret}", messages.WARNING)

    @admin.action(description="Revoke", permissions=["change"])
    def revoke_tokens(self, request: HttpRequest, tokens: QuerySet[EnrolmentToken]) -> None:
        found = list(tokens.filter(revoked_at=None))
        EnrolmentToken.objects.filter(pk__in=[t.pk for t in found]).update(revoked_at=timezone.now())
        for token in found:
            audit(request, token, "Revoked")
        self.message_user(request, f"Revoked {len(found)}", messages.SUCCESS)


@admin.register(Gpu)
class GpuAdmin(ReadOnly):
    list_display = ["name", "node", "index", "utilisation", "temperature_c", "power_w"]
    list_select_related = ["node"]


@admin.register(NodeEvent)
class NodeEventAdmin(ReadOnly):
    list_display = ["at", "node", "was", "now", "reason"]
    list_select_related = ["node"]
