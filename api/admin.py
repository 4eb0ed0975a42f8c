"""Keys in the admin: made and rotated (shown once), edited, revoked; and what they have used."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import IntegerField, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget

from api import accounts, authentication, usage  # noqa: F401 - accounts registers its rows
from api.models import ApiKey, Usage
from nodes.admin.carried import model_names
from nodes.backoffice import filters, shown_once, words
from nodes.backoffice.rows import PLAYGROUND, ReadOnly
from nodes.backoffice.steps import Result, Steered, Step, each

ROTATION_GRACE = datetime.timedelta(hours=24)


class WordsField(forms.JSONField):
    """A list of words, shown and typed with a space, comma or new line between them."""

    widget = UnfoldAdminTextareaWidget(attrs={"rows": 3, "cols": 60})

    def to_python(self, value: Any) -> Any:
        return [word for word in re.split(r"[\s,]+", value or "") if word]

    def bound_data(self, data: Any, initial: Any) -> Any:
        return data

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != self.to_python(data))


class ApiKeyForm(forms.ModelForm):
    class Meta:
        model = ApiKey
        fields = "__all__"  # noqa: DJ007 - the admin's own `fieldsets` decide
        field_classes = {"allowed_models": WordsField, "allowed_nodes": WordsField}
        widgets = {"allowed_models": WordsField.widget, "allowed_nodes": WordsField.widget}

    def clean(self) -> dict[str, Any]:
        """A number left empty means none."""
        given = super().clean() or self.cleaned_data
        numbers = [f.name for f in ApiKey._meta.fields if isinstance(f, IntegerField)]
        return given | {name: 0 for name in numbers if name in given and given[name] is None}


def _rotation(grace: datetime.timedelta) -> Callable[[HttpRequest, list[ApiKey]], Iterable[Result]]:
    def do(request: HttpRequest, keys: list[ApiKey]) -> Iterable[Result]:
        for key in keys:
            try:
                secret = authentication.rotate(key, grace_seconds=grace.total_seconds())
            except ValidationError as e:
                yield Result(key, refused=e.messages[0])
            else:
                yield Result(key, secret=secret)

    return do


def _revoke(key: ApiKey, by: str) -> bool:
    revoked_before = key.revoked_at is not None
    authentication.revoke(key)
    return not revoked_before


@admin.register(ApiKey)
class ApiKeyAdmin(Steered):
    when_empty = "Whoever asks the API needs a key. Its secret is shown once, when it is made."
    form = ApiKeyForm
    list_display = [
        "name",
        "prefix",
        "shown_state",
        "staff",
        "owner",
        "priority",
        "limits",
        words.when("expires_at", "expires"),
        words.when("created_at", "made"),
    ]
    list_filter = ["staff"]
    search_fields = ["name", "prefix", "owner__username"]
    search_help_text = "name, beginning of the secret, or owner"
    list_select_related = ["owner"]
    autocomplete_fields = ["owner"]
    readonly_fields = [
        "prefix",
        "shown_state",
        words.when("previous_until", "old secret valid until"),
        "more",
    ]
    fieldsets = [
        (None, {"fields": ["name", "owner", "staff", "expires_at"]}),
        ("What it may use", {"fields": ["allowed_models", "allowed_nodes", "priority"]}),
        (
            "Limits",
            {
                "fields": [
                    "concurrency",
                    "requests_per_minute",
                    "tokens_per_minute",
                    "tokens_per_day",
                    "tokens_per_month",
                ]
            },
        ),
    ]
    steps = [
        Step(
            name="rotate_keys",
            title="Rotate",
            done="Rotated",
            icon="autorenew",
            what="A new secret is made and shown once. The old one is good for another 24 hours.",
            do=_rotation(ROTATION_GRACE),
            possible=lambda key: key.revoked_at is None,
        ),
        Step(
            name="rotate_keys_now",
            title="Rotate now",
            done="Rotated",
            icon="autorenew",
            hurts=True,
            what="A new secret is made and shown once. The old one is refused within a second: whoever uses "
            "it gets 401 until the new one is put in place.",
            do=_rotation(datetime.timedelta()),
            possible=lambda key: key.revoked_at is None,
        ),
        Step(
            name="revoke_keys",
            title="Revoke",
            done="Revoked",
            icon="block",
            hurts=True,
            what="It is refused within a second and for good, and what runs or waits for it is ended.",
            do=each(_revoke),
            possible=lambda key: key.revoked_at is None,
        ),
    ]

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        made = [("The secret", {"fields": [*self.readonly_fields]})] if obj else []
        return [*self.fieldsets, *made]

    def describe(self, row: ApiKey) -> str:
        return f"{row.state}, of {row.owner or 'nobody'}, {limits_in_words(row)}"

    @display(description="state")
    def shown_state(self, key: ApiKey) -> str:
        return words.badge(key.state, {"valid": "success", "revoked": "danger"}.get(key.state, "warning"))

    @display(description="limits")
    def limits(self, key: ApiKey) -> str:
        return limits_in_words(key)

    @display(description="more of it")
    def more(self, key: ApiKey) -> str:
        jobs, used = reverse("admin:jobs_job_changelist"), reverse("admin:api_usage_changelist")
        links = ((jobs, "its jobs"), (used, "what it used"))
        shown = [words.link(f"{page}?key__id__exact={key.pk}", text) for page, text in links]
        return format_html("{}, {}", *shown)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # jobs and usage name their key; revoke it instead

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            authentication.announce()
        else:
            options = {
                f.name: getattr(obj, f.name) for f in ApiKey._meta.fields if f.name in form.cleaned_data
            }
            row, obj.secret = authentication.new_key(**options)
            obj.pk, obj.prefix, obj.key_hash = row.pk, row.prefix, row.key_hash

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        back = reverse("admin:api_apikey_change", args=[obj.pk])
        return shown_once.page(request, self, [(f"API key {obj.name}", obj.secret)], back)


def limits_in_words(key: ApiKey) -> str:
    """Such as '60 rpm, 10000 tpm'; '-' without limits."""
    units = {
        "at once": key.concurrency,
        "rpm": key.requests_per_minute,
        "tpm": key.tokens_per_minute,
        "tokens/day": key.tokens_per_day,
        "tokens/month": key.tokens_per_month,
    }
    return ", ".join(f"{limit} {unit}" for unit, limit in units.items() if limit) or "-"


@admin.register(Usage)
class UsageAdmin(ReadOnly):
    when_empty = "What keys use is added up here by day and model, from the first request on."
    way_on = PLAYGROUND
    list_display = ["shown_day", "key_name", "model", "requests", "errors", "cancelled", "tokens", "gpu_time"]
    sortable_by = ("shown_day", "requests", "errors", "cancelled", "tokens", "gpu_time")
    list_filter = [
        filters.since("time", lambda at: {"day__gte": at.date()}),
        filters.one_of("model", "model", model_names),
        ("key", AutocompleteSelectFilter),
    ]
    search_fields = ["model", "key__name", "key__prefix"]
    date_hierarchy = "day"
    list_select_related = ["key"]
    list_per_page = 100
    actions = ["export"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        response = super().changelist_view(request, extra_context)
        if isinstance(response, TemplateResponse) and response.context_data and "cl" in response.context_data:
            totals = usage.total(response.context_data["cl"].queryset)
            response.context_data["totals"] = {
                name: f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
                for name, value in totals.items()
            }
        return response

    @display(description="day", ordering="day")
    def shown_day(self, row: Usage) -> str:
        return f"{row.day:%d %b %Y}".replace(" ", "\N{NO-BREAK SPACE}")

    @display(description="key")
    def key_name(self, row: Usage) -> str:
        return row.key.name

    @display(description="tokens in, out", ordering="completion_tokens")
    def tokens(self, row: Usage) -> str:
        text = f"{row.prompt_tokens:,} → {row.completion_tokens:,}"
        return f"{text} ({row.estimated_tokens:,} estimated)" if row.estimated_tokens else text

    @display(description="GPU-seconds", ordering="gpu_seconds")
    def gpu_time(self, row: Usage) -> str:
        return f"{row.gpu_seconds:,.1f}"

    @admin.action(description="Export as CSV", permissions=["view"])
    def export(self, request: HttpRequest, rows: QuerySet[Usage]) -> HttpResponse:
        groups = ("day", "key", "model")
        response = HttpResponse(content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = 'attachment; filename="usage.csv"'
        usage.write_csv(usage.grouped(rows, groups), groups, response)  # type: ignore[arg-type]
        return response
