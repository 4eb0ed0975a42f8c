"""What keys have used, by model and day: kept as increments, read as sums.

The increments come from `jobs.accounting`, in the transaction that ends a job or closes an attempt, so each
counts exactly once. A day is that of the end, in UTC.
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterable, Sequence
from typing import Any, Final, TextIO

from django.db import connections
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone
from msgspec import Struct

from api.models import Usage
from jobs.accounting import Entry

COUNTS: Final = (
    "requests",
    "errors",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
    "estimated_tokens",
    "gpu_seconds",
)
GROUPS: Final = {"day": ("day",), "model": ("model",), "key": ("key", "key__name")}
"""What sums can be grouped by, and the columns that show it."""


# -- keeping -------------------------------------------------------------------------------------------


def keep(entries: Sequence[Entry], using: str) -> None:
    """Add entries to the rows they belong to, in one statement. Called inside a transaction."""
    sums: dict[tuple[int, str, datetime.date], list[float]] = {}
    for e in entries:
        at = e.at.astimezone(datetime.UTC).date()
        s = e.spent
        add = (
            e.requests,
            e.errors,
            e.cancelled,
            s.prompt_tokens,
            s.completion_tokens,
            s.total if s.estimated else 0,
            e.node_seconds,
        )
        have = sums.setdefault((e.key, e.model, at), [0] * len(add))
        sums[e.key, e.model, at] = [a + b for a, b in zip(have, add, strict=True)]
    # In one order everywhere, or two processes that lock the same rows could wait for each other.
    ordered = sorted(sums.items(), key=lambda item: item[0])
    for start in range(0, len(ordered), 200):
        _add(ordered[start : start + 200], using)


def _add(rows: Sequence[tuple[tuple[int, str, datetime.date], list[float]]], using: str) -> None:
    """``INSERT ... ON CONFLICT DO UPDATE SET n = n + excluded.n``, which Django cannot say for many rows."""
    connection = connections[using]
    quote = connection.ops.quote_name
    table = quote(Usage._meta.db_table)
    names = [quote(n) for n in ("key_id", "model", "day", *COUNTS)]
    one = "(" + ", ".join(["%s"] * len(names)) + ")"
    added = ", ".join(f"{c} = {table}.{c} + excluded.{c}" for c in names[3:])
    sql = (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([one] * len(rows))}"  # noqa: S608 - names are ours
        f" ON CONFLICT ({', '.join(names[:3])}) DO UPDATE SET {added}"
    )
    day = connection.ops.adapt_datefield_value
    values = [v for (key, model, at), counts in rows for v in (key, model, day(at), *counts)]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


# -- budgets -------------------------------------------------------------------------------------------


class Spent(Struct, frozen=True):
    """Tokens of a key by the ledger: on this day, and in this month."""

    day: str = ""  # such as 2026-11-23
    month: str = ""  # such as 2026-11
    day_tokens: int = 0
    month_tokens: int = 0


NOTHING_SPENT: Final = Spent()


def spent(keys: Sequence[int]) -> dict[int, Spent]:
    """What these keys have spent in the present day and month. One query, none without keys."""
    if not keys:
        return {}
    today = timezone.now().astimezone(datetime.UTC).date()
    tokens = Sum("prompt_tokens") + Sum("completion_tokens")
    rows = (
        Usage.objects.filter(key__in=keys, day__gte=today.replace(day=1), day__lte=today)
        .values("key")
        .order_by()
        .annotate(
            month_tokens=tokens,
            today_prompt=Sum("prompt_tokens", filter=Q(day=today), default=0),
            today_answer=Sum("completion_tokens", filter=Q(day=today), default=0),
        )
    )
    found = {
        row["key"]: (row["today_prompt"] + row["today_answer"], row["month_tokens"] or 0) for row in rows
    }
    return {key: Spent(today.isoformat(), f"{today:%Y-%m}", *found.get(key, (0, 0))) for key in keys}


# -- reading -------------------------------------------------------------------------------------------


def select(start: datetime.date, end: datetime.date, key: int | None = None) -> QuerySet[Usage]:
    """The rows of these days, both included; of one key, or of all."""
    rows = Usage.objects.filter(day__gte=start, day__lte=end)
    return rows if key is None else rows.filter(key_id=key)


def grouped(rows: QuerySet[Usage], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Sums over `rows` for each combination of `groups` (names of `GROUPS`), in their order."""
    columns = [column for group in groups for column in GROUPS[group]]
    sums = {f"sum_{c}": Sum(c) for c in COUNTS}
    found = []
    for row in rows.order_by(*columns).values(*columns).annotate(**sums):
        shown: dict[str, Any] = {}
        if "day" in row:
            shown["day"] = row["day"].isoformat()
        if "model" in row:
            shown["model"] = row["model"]
        if "key" in row:
            shown["key"] = {"id": row["key"], "name": row["key__name"] or ""}
        found.append(shown | _counts(row))
    return found


def total(rows: QuerySet[Usage]) -> dict[str, Any]:
    """Sums over all `rows`."""
    return _counts(rows.order_by().aggregate(**{f"sum_{c}": Sum(c) for c in COUNTS}))


def _counts(row: dict[str, Any]) -> dict[str, Any]:
    counts = {c: row[f"sum_{c}"] or 0 for c in COUNTS}
    return counts | {
        "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"],
        "gpu_seconds": round(counts["gpu_seconds"], 3),
    }


def write_csv(rows: Iterable[dict[str, Any]], groups: Sequence[str], to: TextIO) -> None:
    """The sums of `grouped` as CSV with a line of headings (RFC 4180)."""
    headings = ["key_id" if g == "key" else g for g in groups]
    if "key" in groups:
        headings.append("key_name")
    out = csv.writer(to)
    out.writerow([*headings, *COUNTS, "total_tokens"])
    for row in rows:
        flat: list[Any] = [row[g]["id"] if g == "key" else row[g] for g in groups]
        if "key" in groups:
            flat.append(_inert(row["key"]["name"]))
        out.writerow([*flat, *(row[c] for c in COUNTS), row["total_tokens"]])


def _inert(text: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
