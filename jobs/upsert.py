"""``INSERT ... ON CONFLICT DO UPDATE ... WHERE ... RETURNING``, the same on PostgreSQL and SQLite.

By hand, since Django's `bulk_create(update_conflicts=True)` takes no condition.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from django.db import connections, models
from msgspec import Struct

_ROWS = 200  # SQLite allows 32,766 variables in a statement; a job has about 25 columns


@dataclass(frozen=True, slots=True)
class Target:
    """A table and what becomes of a row that is there: it takes the new one's values where `condition` (SQL,
    by alias of the database) holds. `unique` are the columns by which rows are the same, `tell` those that
    are returned of each row that was really written."""

    model: type[models.Model]
    unique: tuple[str, ...]
    tell: tuple[str, ...]
    condition: Callable[[str], str]


def write(target: Target, rows: Sequence[Struct], using: str) -> list[tuple[Any, ...]]:
    """Write rows that are all of one type, whose fields are named as some of the model's columns; the others
    get their defaults. Returns the columns `tell` of those that were written."""
    written: list[tuple[Any, ...]] = []
    if not rows:
        return written
    connection = connections[using]
    quote = connection.ops.quote_name
    columns = _columns(target.model, type(rows[0]), connection)
    names = [quote(c.name) for c in columns]
    changed = [quote(c.name) for c in columns if c.name not in target.unique]
    updates = [f"{name} = excluded.{name}" for name in changed]
    one = "(" + ", ".join(["%s"] * len(columns)) + ")"
    begin = f"INSERT INTO {quote(target.model._meta.db_table)} ({', '.join(names)}) VALUES "  # noqa: S608 - names are ours
    end = (
        f" ON CONFLICT ({', '.join(quote(u) for u in target.unique)})"
        f" DO UPDATE SET {', '.join(updates)}{target.condition(using)}"
        f" RETURNING {', '.join(quote(t) for t in target.tell)}"
    )
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        with connection.cursor() as cursor:
            cursor.execute(begin + ", ".join([one] * len(part)) + end, _flat(columns, part))
            written += cursor.fetchall()
    return written


@dataclass(frozen=True, slots=True)
class _Column:
    """`values` are those of these rows."""

    name: str
    values: Callable[[Sequence[Struct]], Iterable[Any]]


def _columns(model: type[models.Model], row: type[Struct], connection: Any) -> list[_Column]:
    found = []
    for field in model._meta.concrete_fields:
        if isinstance(field, models.AutoField):
            continue
        if field.attname not in row.__struct_fields__:
            values = partial(_same, field.get_db_prep_save(field.get_default(), connection))
        elif isinstance(field, models.DateTimeField):
            values = partial(_moments, attrgetter(field.attname), _adapted(connection))
        else:
            values = partial(map, attrgetter(field.attname))
        found.append(_Column(str(field.column), values))
    return found


def _flat(columns: Iterable[_Column], rows: Sequence[Struct]) -> list[Any]:
    """The values of all rows, one row after the other. By column first: that is what costs least."""
    by_column = [column.values(rows) for column in columns]
    return [value for row in zip(*by_column, strict=True) for value in row]


def _same(value: Any, rows: Sequence[Struct]) -> Iterable[Any]:
    return [value] * len(rows)


def _moments(of: Callable[[Any], Any], adapt: Callable[[Any], Any], rows: Sequence[Struct]) -> Iterable[Any]:
    return map(adapt, map(of, rows))


def _adapted(connection: Any) -> Callable[[Any], Any]:
    """How the database takes a time in UTC (or None). SQLite's rule is Django's, less the way through the
    zone of the connection, which is UTC."""
    if connection.vendor == "sqlite" and connection.timezone is datetime.UTC:
        return lambda value: None if value is None else str(value.replace(tzinfo=None))
    adapt: Callable[[Any], Any] = connection.ops.adapt_datetimefield_value
    return adapt
