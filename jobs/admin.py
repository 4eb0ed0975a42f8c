"""Jobs in the admin, with their attempts as a timeline; batches and files."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Iterable
from typing import Any, Final

import redis
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.db import DatabaseError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from jobs import batches, cancelling, retrying, timeline
from jobs.dispatch import STATE, Dispatcher
from jobs.errors import error_codes
from jobs.models import BATCH_ENDS, TERMINAL, Batch, BatchStatus, Job, JobState, StoredFile
from nodes.admin.carried import model_names
from nodes.backoffice import filters, words
from nodes.backoffice.rows import PLAYGROUND, REFERENCE, ReadOnly
from nodes.backoffice.steps import REDIS_AWAY, Result, Steered, Step, each

JOB_COLOURS: Final = {
    JobState.PENDING: "info",
    JobState.RUNNING: "primary",
    JobState.COMPLETED: "success",
    JobState.FAILED: "danger",
    JobState.EXPIRED: "warning",
}
BATCH_COLOURS: Final = {
    BatchStatus.VALIDATING: "info",
    BatchStatus.IN_PROGRESS: "primary",
    BatchStatus.FINALIZING: "primary",
    BatchStatus.COMPLETED: "success",
    BatchStatus.FAILED: "danger",
    BatchStatus.EXPIRED: "warning",
    BatchStatus.CANCELLING: "warning",
}
_ID: Final = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{6,32})\Z")


def since_id(at: datetime.datetime) -> dict[str, str]:
    """Jobs accepted since a moment, by their ids, which begin with the time and have an index."""
    return {"pk__gte": f"{int(at.timestamp() * 1000):012x}"}


def _cancel(request: HttpRequest, jobs: list[Job]) -> Iterable[Result]:
    """All of them at once: each may take a moment to end."""
    dispatcher: Dispatcher | None = getattr(request, "scope", {}).get("state", {}).get(STATE)
    if dispatcher is None:
        return [Result(job, refused="this process serves no requests: ask one that does") for job in jobs]
    open_ones = [job for job in jobs if job.state not in TERMINAL]

    async def all_of_them() -> list[Any]:
        calls = [cancelling.cancel(dispatcher, job) for job in open_ones]
        return await asyncio.gather(*calls, return_exceptions=True)

    said = dict(zip([job.pk for job in open_ones], async_to_sync(all_of_them)(), strict=True))
    return [_cancelled(job, said) for job in jobs]


def _cancelled(job: Job, said: dict[str, Any]) -> Result:
    if job.pk not in said:
        return Result(job, refused=f"nothing to do, it is {job.state}")
    match said[job.pk]:
        case redis.RedisError():
            return Result(job, refused=REDIS_AWAY)
        case DatabaseError():
            return Result(job, refused="the database is away, try again")
        case BaseException() as e:
            raise e
    return Result(job)


def _retry(request: HttpRequest, jobs: list[Job]) -> Iterable[Result]:
    for job in jobs:
        try:
            yield Result(job, note=f"as {retrying.retry(job)}")
        except retrying.NotRetried as e:
            yield Result(job, refused=str(e))


@admin.register(Job)
class JobAdmin(Steered, ReadOnly):
    when_empty = "Every request is a job, streamed or not: ask a model something."
    way_on = PLAYGROUND
    list_display = [
        "short_id",
        words.when("created_at", "accepted"),
        "shown_state",
        "model",
        "node",
        "tokens",
        "first_token",
        "total",
        "key_name",
    ]
    list_filter = [
        filters.since("time", since_id),
        ("state", ChoicesDropdownFilter),
        filters.one_of("model", "model", model_names),
        ("node", AutocompleteSelectFilter),
        ("key", AutocompleteSelectFilter),
        filters.one_of("error_code", "error", error_codes),
        "asynchronous",
    ]
    search_fields = ["id"]
    search_help_text = "id or its beginning; or a model; or an error code"
    ordering = ["-id"]
    list_per_page = 30  # most of what a page costs is showing its rows
    sortable_by = ()  # the table may be long, and has an index for this order alone
    change_form_outer_before_template = "backoffice/timeline.html"
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "id",
                    "shown_state",
                    "error_message",
                    "model",
                    "path",
                    "kind",
                    "node",
                    "why",
                    "key",
                    "priority",
                ]
            },
        ),
        (
            "What it took",
            {"fields": ["waited", "first_token", "total", "tokens", "http_status", "kept"]},
        ),
        (
            "Times",
            {
                "fields": [
                    words.when("created_at", "accepted"),
                    words.when("placed_at", "placed"),
                    words.when("first_token_at", "first token"),
                    words.when("finished_at", "ended"),
                ]
            },
        ),
    ]
    readonly_fields = ["shown_state", "kind", "waited", "first_token", "total", "tokens", "kept"]
    steps = [
        Step(
            name="cancel",
            title="Cancel",
            done="Cancelled",
            icon="cancel",
            hurts=True,
            what="Who waits for it gets an error, the engine stops, its slot is free. What was asked is "
            "dropped: a cancelled job cannot be retried.",
            do=_cancel,
            possible=lambda job: job.state not in TERMINAL,
        ),
        Step(
            name="retry",
            title="Retry",
            done="Retried",
            icon="replay",
            what="The same request becomes a new job of the same key, which counts as used by it. This job "
            "stays as it ended, and can be retried once.",
            do=_retry,
            possible=lambda job: job.asynchronous and job.state in retrying.RETRIABLE,
        ),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """With node and key, which may be gone: a join finds none where a look-up of its own would fail."""
        rows = super().get_queryset(request).select_related("node", "key")
        return rows.defer("request", "result")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Job], search_term: str
    ) -> tuple[QuerySet[Job], bool]:
        """One lookup in one index, rather than a look at every row."""
        term = search_term.strip()
        if not term or "\0" in term:
            return (queryset.none() if term else queryset), False
        if found := _ID.fullmatch(term):
            begin = found[1]
            return queryset.filter(pk__gte=begin, pk__lte=begin.ljust(32, "f")), False
        if term in error_codes():
            return queryset.filter(error_code=term), False
        return queryset.filter(model=term[:200]), False

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        if (job := kwargs.get("obj")) is not None:
            attempts = list(job.attempts.select_related("node").order_by("number"))
            context["timeline"] = timeline.of(job, attempts, timezone.now())
        return super().render_change_form(request, context, *args, **kwargs)

    def describe(self, row: Job) -> str:
        where = f" on {row.node}" if row.node else ""
        return f"{row.state}{where}, {row.model}, of {row.key or 'no key'}, {self.kind(row)}"

    @display(description="id")
    def short_id(self, job: Job) -> str:
        return format_html("{}<wbr>…{}", job.id[:8], job.id[-6:])

    @display(description="state")
    def shown_state(self, job: Job) -> str:
        """Attempts are told of where one was not enough."""
        text = f"{job.state}: {job.error_code}" if job.error_code else job.state
        shown = words.badge(text, JOB_COLOURS.get(JobState(job.state), ""))
        if job.attempt_count < 2:
            return shown
        return format_html("{}<small>{} attempts</small>", shown, job.attempt_count)

    @display(description="kind")
    def kind(self, job: Job) -> str:
        return "asynchronous" if job.asynchronous else "stream" if job.stream else "whole"

    @display(description="tokens")
    def tokens(self, job: Job) -> str:
        """In and out, on one line."""
        return f"{job.prompt_tokens:,} → {job.completion_tokens:,}".replace(" ", "\N{NO-BREAK SPACE}")

    @display(description="key")
    def key_name(self, job: Job) -> str:
        return job.key.name if job.key else words.NONE

    @display(description="waited")
    def waited(self, job: Job) -> str:
        return words.between(job.created_at, job.placed_at)

    @display(description="first token")
    def first_token(self, job: Job) -> str:
        return words.between(job.created_at, job.first_token_at)

    @display(description="in all")
    def total(self, job: Job) -> str:
        return words.between(job.created_at, job.finished_at)

    @display(description="still kept")
    def kept(self, job: Job) -> str:
        """Of what was asked and answered: whether, never what."""
        rows = Job.objects.filter(pk=job.pk)
        kept = [name for name in ("request", "result") if rows.filter(**{f"{name}__isnull": False}).exists()]
        return " and ".join(kept) or "neither request nor result"


@admin.register(Batch)
class BatchAdmin(Steered, ReadOnly):
    when_empty = "A batch is a file of requests, worked off on what is idle. Callers make it at /v1/batches."
    way_on = REFERENCE
    list_display = [
        "id",
        words.when("created_at", "made"),
        "shown_status",
        "key",
        "endpoint",
        "progress",
        "failed",
        "tokens",
        words.when("expires_at", "window ends"),
    ]
    list_filter = [("status", ChoicesDropdownFilter), ("key", AutocompleteSelectFilter)]
    search_fields = ["id", "key__name"]
    list_select_related = ["key"]
    fieldsets = [
        (None, {"fields": ["id", "shown_status", "key", "endpoint", "progress", "failed", "tokens"]}),
        ("Files", {"fields": ["files", "metadata", "errors"]}),
        (
            "Times",
            {
                "fields": [
                    words.when("created_at", "made"),
                    words.when("in_progress_at", "validated"),
                    words.when("finalizing_at"),
                    words.when("cancelling_at"),
                    words.when("ended_at", "ended"),
                    words.when("expires_at", "window ends"),
                ]
            },
        ),
    ]
    readonly_fields = ["shown_status", "progress", "tokens", "files"]
    steps = [
        Step(
            name="cancel",
            title="Cancel",
            done="Cancelled",
            icon="cancel",
            hurts=True,
            what="What is under way is stopped, what was answered is kept, the rest is never asked.",
            do=each(lambda batch, by: batches.cancel(batch)),
            possible=lambda batch: batch.status not in {*BATCH_ENDS, BatchStatus.FINALIZING},
        )
    ]

    def describe(self, row: Batch) -> str:
        return f"{row.get_status_display()}, {self.progress(row)} answered, of {row.key or 'no key'}"

    @display(description="status")
    def shown_status(self, batch: Batch) -> str:
        return words.badge(batch.get_status_display(), BATCH_COLOURS.get(BatchStatus(batch.status), ""))

    @display(description="answered")
    def progress(self, batch: Batch) -> str:
        return f"{batch.completed:,} of {batch.total:,}"

    @display(description="tokens in, out")
    def tokens(self, batch: Batch) -> str:
        return f"{batch.prompt_tokens:,} → {batch.completion_tokens:,}"

    @display(description="files")
    def files(self, batch: Batch) -> str:
        """Input, output, errors; a file may be gone, which its page says."""
        named = {"input": batch.input_file, "output": batch.output_file, "errors": batch.error_file}
        page = "admin:jobs_storedfile_change"
        links = [words.link(reverse(page, args=[file]), f"{name} ") for name, file in named.items() if file]
        return format_html("{} " * len(links), *links)


@admin.register(StoredFile)
class StoredFileAdmin(ReadOnly):
    """Which files there are; what is in them is their owners' alone."""

    when_empty = "Callers send files of requests to /v1/files; batches write what came of them."
    way_on = REFERENCE

    list_display = [
        "id",
        "filename",
        "purpose",
        words.bytes_of("size"),
        "complete",
        "key",
        words.when("created_at", "made"),
        words.when("expires_at", "kept until"),
    ]
    list_filter = [
        filters.one_of("purpose", "purpose", lambda: ["batch", "batch_output"]),
        ("key", AutocompleteSelectFilter),
    ]
    search_fields = ["id", "filename"]
    list_select_related = ["key"]
    fieldsets = [(None, {"fields": list_display})]
