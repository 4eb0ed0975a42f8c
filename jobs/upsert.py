"""``INSERT ... ON CONFLICT DO UPDATE ... WHERE ... RETURNING``, the same on PostgreSQL and SQLite.

By hand, since Django's `bulk_create(update_conflicts=True)` takes no condition.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from django.db import connections, models

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


def write(target: Target, rows: Sequence[Any], using: str) -> list[tuple[Any, ...]]:
    """Write rows that are all of one type: the model's own, or one that has attributes of the names of some
    of its columns (the others get their defaults). Returns the columns `tell` of those that were written."""
    written: list[tuple[Any, ...]] = []
    if not rows:
        return written
    connection = connections[using]
    quote = connection.ops.quote_name
    columns = _columns(target.model, type(rows[0]), connection)
    names = [quote(c.name) for c in columns]
    updates = [
        f"{n} = excluded.{n}" for n, c in zip(names, columns, strict=True) if c.name not in target.unique
    ]
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
    name: str
    of: Callable[[Any], Any] | None  # None: the same for all rows
    prepared: Callable[[Any], Any] | None  # None: as it is
    default: Any = None


def _columns(model: type[models.Model], row: type, connection: Any) -> list[_Column]:
    found = []
    for field in model._meta.concrete_fields:
        if isinstance(field, models.AutoField):
            continue
        if issubclass(row, models.Model):
            prepare: Callable[[Any], Any] | None = _by_django(field, connection)
        else:
            prepare = _moment(connection) if isinstance(field, models.DateTimeField) else None
        name = str(field.column)
        if hasattr(row, field.attname):
            found.append(_Column(name, attrgetter(field.attname), prepare))
        else:
            default = field.get_db_prep_save(field.get_default(), connection)
            found.append(_Column(name, None, None, default))
    return found


def _flat(columns: Iterable[_Column], rows: Sequence[Any]) -> list[Any]:
    """The values of all rows, one row after the other. By column first: that is what costs least."""
    by_column = []
    for column in columns:
        if column.of is None:
            by_column.append([column.default] * len(rows))
        elif column.prepared is None:
            by_column.append(list(map(column.of, rows)))
        else:
            by_column.append(list(map(column.prepared, map(column.of, rows))))
    return [value for row in zip(*by_column, strict=True) for value in row]


def _by_django(field: Any, connection: Any) -> Callable[[Any], Any]:
    return lambda value: field.get_db_prep_save(value, connection)


def _moment(connection: Any) -> Callable[[Any], Any] | None:
    """How the database takes a time in UTC (or None). SQLite's rule is Django's, less the way through the
    zone of the connection, which is UTC."""
    if connection.vendor == "sqlite" and connection.timezone is datetime.UTC:
        return lambda value: None if value is None else str(value.replace(tzinfo=None))
    adapt: Callable[[Any], Any] = connection.ops.adapt_datetimefield_value
    return adapt
