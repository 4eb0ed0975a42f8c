"""API keys in the admin: made (shown once), listed, revoked."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from api import authentication
from api.models import ApiKey
from nodes.admin import audit


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    list_display = ["name", "prefix", "state", "staff", "owner", "expires_at", "created_at"]
    list_filter = ["staff"]
    search_fields = ["name", "prefix", "owner__username"]
    list_select_related = ["owner"]
    fields = ["name", "staff", "owner", "expires_at"]
    actions = ["revoke_keys"]

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        if key.revoked_at:
            return "revoked"
        return "expired" if key.expires_at and key.expires_at <= timezone.now() else "valid"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # jobs name their key; revoke it instead

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
        else:
            row, secret = authentication.new_key(obj.name, staff=obj.staff)
            ApiKey.objects.filter(pk=row.pk).update(owner=obj.owner, expires_at=obj.expires_at)
            obj.pk, obj.prefix, obj.key_hash = row.pk, row.prefix, row.key_hash
            self.message_user(request, f"The key, shown this once: {secret}", messages.WARNING)
        authentication.announce()

    @admin.action(description="Revoke", permissions=["change"])
    def revoke_keys(self, request: HttpRequest, keys: QuerySet[ApiKey]) -> None:
        found = list(keys.filter(revoked_at=None))
        for key in found:
            authentication.revoke(key)
            audit(request, key, "Revoked")
        self.message_user(request, f"Revoked {len(found)}", messages.SUCCESS)
