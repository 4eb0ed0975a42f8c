"""Filters whose choices cost nothing: from a small table, or known, never by looking through all rows."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any, Final

from django.contrib.admin import ModelAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import DropdownFilter

_MOST_CHOICES: Final = 500
_SINCE: Final = {
    "15m": ("the last 15 minutes", 900),
    "1h": ("the last hour", 3600),
    "24h": ("the last 24 hours", 86400),
    "7d": ("the last 7 days", 7 * 86400),
    "30d": ("the last 30 days", 30 * 86400),
}


def one_of(field: str, name: str, choices: Callable[[], Iterable[Any]]) -> type[DropdownFilter]:
    """Rows whose `field` is one of what `choices` gives: values, or pairs of a value and its text."""

    class OneOf(DropdownFilter):
        title = name
        parameter_name = field

        def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> Any:
            found = [c if isinstance(c, tuple) else (c, c) for c in choices()][:_MOST_CHOICES]
            return found or [("", "-")]  # a filter without choices would not be offered

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            return queryset.filter(**{field: self.value()}) if self.value() else queryset

    return OneOf


def since(name: str, begin: Callable[[datetime.datetime], dict[str, Any]]) -> type[DropdownFilter]:
    """Rows not older than so long. `begin` gives the condition for those since a moment."""

    class Since(DropdownFilter):
        title = name
        parameter_name = "since"

        def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> Any:
            return [(key, text) for key, (text, _) in _SINCE.items()]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            if self.value() not in _SINCE:
                return queryset
            seconds = _SINCE[str(self.value())][1]
            return queryset.filter(**begin(timezone.now() - datetime.timedelta(seconds=seconds)))

    return Since
