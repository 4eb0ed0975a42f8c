"""Jobs in the admin, with their attempts."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import TabularInline

from jobs.models import Attempt, Batch, Job
from nodes.admin import ReadOnly


class AttemptInline(TabularInline):
    model = Attempt
    extra = 0
    can_delete = False
    fields = ("number", "node", "outcome", "reason", "claimed_at", "placed_at", "finished_at")
    readonly_fields = ("number", "node", "outcome", "reason", "claimed_at", "placed_at", "finished_at")

    def has_add_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return False


@admin.register(Job)
class JobAdmin(ReadOnly):
    list_display = [
        "short_id",
        "created_at",
        "state",
        "error_code",
        "model",
        "node",
        "kind",
        "attempt_count",
        "prompt_tokens",
        "completion_tokens",
        "first_token_ms",
        "total_ms",
        "key",
    ]
    list_filter = ["state", "asynchronous", "stream", "model", "node", "error_code"]
    search_fields = ["id__startswith", "model__startswith", "error_code"]
    search_help_text = "id (or its beginning), model, error code"
    list_select_related = ["node", "key"]
    list_per_page = 50
    show_full_result_count = False
    inlines = [AttemptInline]
    readonly_fields = ["first_token_ms", "total_ms"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        return super().get_queryset(request).defer("request", "result")

    @admin.display(description="id", ordering="id")
    def short_id(self, job: Job) -> str:
        return f"{job.id[:8]}…{job.id[-6:]}"

    @admin.display(description="kind")
    def kind(self, job: Job) -> str:
        return "asynchronous" if job.asynchronous else "stream" if job.stream else "whole"

    @admin.display(description="first token (ms)")
    def first_token_ms(self, job: Job) -> str:
        if not job.first_token_at:
            return "-"
        return f"{(job.first_token_at - job.created_at).total_seconds() * 1000:.0f}"

    @admin.display(description="total (ms)")
    def total_ms(self, job: Job) -> str:
        if not job.finished_at:
            return "-"
        return f"{(job.finished_at - job.created_at).total_seconds() * 1000:.0f}"


@admin.register(Batch)
class BatchAdmin(ReadOnly):
    list_display = [
        "id",
        "created_at",
        "status",
        "key",
        "endpoint",
        "total",
        "completed",
        "failed",
        "expires_at",
    ]
    list_filter = ["status"]
    search_fields = ["id", "key__name"]
    list_select_related = ["key"]
