"""Who works in the admin, and what they have done there: users, groups and the log."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from nodes.backoffice import filters, words
from nodes.backoffice.rows import ReadOnly

_FLAGS = {ADDITION: ("added", "success"), CHANGE: ("changed", "info"), DELETION: ("deleted", "danger")}

admin.site.unregister([User, Group])


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "role", "is_active", "email", words.when("last_login", "last login")]
    list_filter = ["is_staff", "is_superuser", "is_active"]
    list_filter_submit = True
    list_fullwidth = True

    @display(description="role")
    def role(self, user: User) -> str:
        if user.is_superuser:
            return words.badge("superuser", "warning")
        return words.badge("staff", "info") if user.is_staff else words.badge("no access here")


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    pass


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnly):
    """Who did what in the admin. Nobody edits it."""

    when_empty = "Each step that somebody takes here is noted, with who it was."

    list_display = [words.when("action_time", "when"), "user", "what", "content_type", "object_repr", "said"]
    list_filter = [
        ("user", AutocompleteSelectFilter),
        filters.since("time", lambda at: {"action_time__gte": at}),
    ]
    search_fields = ["object_repr", "change_message", "user__username"]
    list_select_related = ["user", "content_type"]
    list_display_links = None

    @display(description="what")
    def what(self, entry: LogEntry) -> str:
        return words.badge(*_FLAGS.get(entry.action_flag, ("", "")))

    @display(description="in words")
    def said(self, entry: LogEntry) -> str:
        return entry.get_change_message()
