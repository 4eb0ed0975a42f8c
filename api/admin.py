"""Keys in the admin: made and rotated (shown once), edited, revoked; and what they have used."""

from __future__ import annotations

import datetime
import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import IntegerField, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin

from api import authentication, usage
from api.models import ApiKey, Usage
from nodes.admin import ReadOnly, audit

ROTATION_GRACE = datetime.timedelta(hours=24)


class WordsField(forms.JSONField):
    """A list of words, shown and typed with a space, comma or new line between them."""

    widget = forms.Textarea(attrs={"rows": 3, "cols": 60})

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


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):
    form = ApiKeyForm
    list_display = [
        "name",
        "prefix",
        "state",
        "staff",
        "owner",
        "priority",
        "limits",
        "expires_at",
        "created_at",
    ]
    list_filter = ["staff"]
    search_fields = ["name", "prefix", "owner__username"]
    list_select_related = ["owner"]
    readonly_fields = ["prefix", "state", "previous_until"]
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
    actions = ["rotate_keys", "rotate_keys_now", "revoke_keys"]

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        made = [("The secret", {"fields": ["prefix", "state", "previous_until"]})] if obj else []
        return [*self.fieldsets, *made]

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        return key.state

    @admin.display(description="limits")
    def limits(self, key: ApiKey) -> str:
        return limits_in_words(key)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # jobs and usage name their key; revoke it instead

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            authentication.announce()
        else:
            options = {
                f.name: getattr(obj, f.name) for f in ApiKey._meta.fields if f.name in form.cleaned_data
            }
            row, secret = authentication.new_key(**options)
            obj.pk, obj.prefix, obj.key_hash = row.pk, row.prefix, row.key_hash
            self._show(request, "The key", secret)

    def _show(self, request: HttpRequest, what: str, secret: str) -> None:
        self.message_user(request, f"{what}, shown this once: {secret}", messages.WARNING)

    @admin.action(description="Rotate: new secret, the old one is good for 24 h", permissions=["change"])
    def rotate_keys(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        self._rotate(request, keys, ROTATION_GRACE)

    @admin.action(description="Rotate now: new secret, the old one is refused", permissions=["change"])
    def rotate_keys_now(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        self._rotate(request, keys, datetime.timedelta())

    def _rotate(self, request: HttpRequest, keys: QuerySet[ApiKey], grace: datetime.timedelta) -> None:
        for key in keys:
            try:
                secret = authentication.rotate(key, grace_seconds=grace.total_seconds())
            except ValidationError as e:
                self.message_user(request, f"{key}: {e.messages[0]}", messages.ERROR)
                continue
            audit(request, key, "Rotated")
            self._show(request, f"The new secret of {key.name}", secret)

    @admin.action(description="Revoke", permissions=["change"])
    def revoke_keys(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        found = list(keys.filter(revoked_at=None))
        for key in found:
            authentication.revoke(key)
            audit(request, key, "Revoked")
        self.message_user(request, f"Revoked {len(found)}", messages.SUCCESS)


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
    list_display = ["day", "key", "model", *usage.COUNTS]
    list_filter = [("day", admin.DateFieldListFilter), "model", "key"]
    search_fields = ["model", "key__name", "key__prefix"]
    date_hierarchy = "day"
    list_select_related = ["key"]
    list_per_page = 100
    actions = ["export"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        response = super().changelist_view(request, extra_context)
        if isinstance(response, TemplateResponse) and response.context_data and "cl" in response.context_data:
            response.context_data["totals"] = usage.total(response.context_data["cl"].queryset)
        return response

    @admin.action(description="Export as CSV", permissions=["view"])
    def export(self, request: HttpRequest, rows: QuerySet[Usage]) -> HttpResponse:
        groups = ("day", "key", "model")
        response = HttpResponse(content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = 'attachment; filename="usage.csv"'
        usage.write_csv(usage.grouped(rows, groups), groups, response)  # type: ignore[arg-type]
        return response
