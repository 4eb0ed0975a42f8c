"""Enrolment tokens in the admin: made (shown once), revoked."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from unfold.decorators import display

from nodes import registry
from nodes.backoffice import shown_once, words
from nodes.backoffice.rows import JOIN
from nodes.backoffice.steps import Steered, Step, each
from nodes.models import EnrolmentToken

_COLOURS = {"valid": "success", "used up": "info", "expired": "warning", "revoked": "danger"}


def revoke(token: EnrolmentToken, by: str) -> bool:
    """Let nobody in with it any more. Returns whether it was not revoked before."""
    rows = EnrolmentToken.objects.filter(pk=token.pk, revoked_at=None)
    return bool(rows.update(revoked_at=timezone.now()))


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(Steered):
    when_empty = "A token lets a host join. Joining a host makes one, with the command that uses it."
    way_on = JOIN
    list_display = [
        "prefix",
        "note",
        "shown_state",
        "used",
        "needs_approval",
        words.when("expires_at", "expires"),
        words.when("created_at", "made"),
    ]
    list_filter = ["needs_approval"]
    search_fields = ["prefix", "note"]
    fields = ["note", "max_uses", "expires_at", "needs_approval"]
    steps = [
        Step(
            name="revoke",
            title="Revoke",
            done="Revoked",
            icon="block",
            hurts=True,
            what="Nobody can join with it any more. Nodes that joined with it stay.",
            do=each(revoke),
            possible=lambda token: token.revoked_at is None,
        )
    ]

    def describe(self, row: EnrolmentToken) -> str:
        return ", ".join(filter(None, [row.note, f"used {row.uses} times"]))

    @display(description="state")
    def shown_state(self, token: EnrolmentToken) -> str:
        return words.badge(token.state, _COLOURS[token.state])

    @display(description="used", ordering="uses")
    def used(self, token: EnrolmentToken) -> str:
        return f"{token.uses} of {token.max_uses}" if token.max_uses else f"{token.uses} (any number)"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
            return
        row, obj.secret = registry.new_token(
            note=obj.note, max_uses=obj.max_uses, needs_approval=obj.needs_approval
        )
        EnrolmentToken.objects.filter(pk=row.pk).update(expires_at=obj.expires_at)
        obj.pk, obj.prefix, obj.token_hash = row.pk, row.prefix, row.token_hash

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        back = reverse("admin:nodes_enrolmenttoken_changelist")
        return shown_once.page(request, self, [(f"Enrolment token {obj.note}".strip(), obj.secret)], back)
