"""Lists in pages as OpenAI has them: ``limit``, ``after`` (the id of the last seen), ``order``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.db.models import Model, QuerySet
from django.http import QueryDict

from api.errors import invalid

_ORDERS: Final = ("asc", "desc")


class Page:
    """What was asked for. Raises `ApiError` 400 naming the parameter that is wrong."""

    def __init__(
        self, query: QueryDict, *, most: int, usual: int, more: Mapping[str, str] | None = None
    ) -> None:
        """`more`: other parameters that pass, and the columns that must equal them."""
        columns, self._equal = more or {}, dict[str, str]()
        self.limit, self.after, self.order = usual, "", "desc"
        for name, values in query.lists():
            value = values[-1]
            if name == "limit":
                if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= most):
                    raise _bad(name, f"expected a number from 1 to {most}")
                self.limit = int(value)
            elif name == "after":
                self.after = _plain(name, value)
            elif name == "order":
                if value not in _ORDERS:
                    raise _bad(name, "expected asc or desc")
                self.order = value
            elif name in columns:
                self._equal[columns[name]] = _plain(name, value)
            else:
                said = name[:100]
                raise invalid(f"Unknown parameter: '{said}'.", code="unknown_parameter", param=said)

    def of(self, rows: QuerySet[Any], show: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The page of these rows; ids sort by time. Blocks on the database."""
        rows = rows.filter(**self._equal)
        if self.after:
            rows = rows.filter(pk__gt=self.after) if self.order == "asc" else rows.filter(pk__lt=self.after)
        found: list[Model] = list(rows.order_by("pk" if self.order == "asc" else "-pk")[: self.limit + 1])
        shown = [show(row) for row in found[: self.limit]]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > self.limit,
        }


def _plain(name: str, value: str) -> str:
    if not 0 < len(value) <= 100 or not value.isascii() or not value.isprintable():
        raise _bad(name, "expected an id or a name")
    return value


def _bad(name: str, why: str) -> Exception:
    return invalid(f"Invalid value for '{name}': {why}.", code="invalid_value", param=name)
