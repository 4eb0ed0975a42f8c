"""``INSERT ... ON CONFLICT DO UPDATE ... WHERE``, the same on PostgreSQL and SQLite, for many rows at once.

By hand, since Django's `bulk_create(update_conflicts=True)` takes no condition. Nothing is done for a row in
Python: its values are taken out and written down by msgspec, and what times look like is the statement's
business. PostgreSQL gets all rows as one text of JSON. SQLite takes a list of them in half the time that it
needs to unpack JSON, but says only how many it wrote. That these are all of them is usual; a savepoint for
the other case would cost every batch a tenth more, RETURNING a multiple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from django.db import connections, models
from msgspec import Struct
from msgspec.structs import astuple

Row = TypeVar("Row", bound=Struct)


@dataclass(frozen=True, slots=True)
class Target:
    """A table and what becomes of a row that is there: it takes the new one's values where `condition` (SQL,
    by alias of the database) holds. `unique` are the columns by which rows are the same."""

    model: type[models.Model]
    unique: tuple[str, ...]
    condition: Callable[[str], str]


class NotAll(Exception):
    """The database took fewer rows than it was given, and did not say which."""


def write(
    target: Target,
    rows: Sequence[Row],
    using: str,
    *,
    singly: bool = False,
    pause: Callable[[], None] | None = None,
) -> Sequence[Row]:
    """Write rows that are all of one type and all different, whose fields are named as some of the model's
    columns; a new row has the defaults of the others. Times are in UTC. Returns those that were really
    written. Called inside a transaction, which is to be rolled back and tried again with `singly` when this
    raises `NotAll`: that takes longer, but then it is known of each row. SQLite works in the thread that
    calls it: there `pause` is called after each few rows."""
    if not rows:
        return rows
    connection = connections[using]
    statement = _statement(target, type(rows[0]), using)
    with connection.cursor() as cursor:
        if connection.vendor != "sqlite":
            cursor.execute(statement, [msgspec.json.encode(rows).decode()])
            told = set(cursor.fetchall())
            if len(told) == len(rows):
                return rows
            return [row for row in rows if tuple(getattr(row, u) for u in target.unique) in told]
        if singly:
            return [row for row in rows if _took(cursor, statement, row)]
        for n in range(0, len(rows), _AT_ONCE):
            some = rows[n : n + _AT_ONCE]
            cursor.executemany(statement, msgspec.to_builtins(list(map(astuple, some))))
            if cursor.rowcount != len(some):
                raise NotAll
            if pause is not None:
                pause()
    return rows


_AT_ONCE = 32
"""Rows for SQLite between two pauses: a few tenths of a millisecond."""


def _took(cursor: Any, statement: str, row: Struct) -> bool:
    cursor.execute(statement, msgspec.to_builtins(astuple(row)))
    return bool(cursor.rowcount)


@lru_cache(maxsize=64)
def _statement(target: Target, row: type[Struct], using: str) -> str:
    """What writes rows of this type. SQLite's takes the values of one row, PostgreSQL's a text of JSON."""
    connection = connections[using]
    quote = connection.ops.quote_name
    fields: dict[str, Any] = {f.attname: f for f in target.model._meta.concrete_fields}
    columns = {name: quote(fields[name].column) for name in row.__struct_fields__}
    others = {
        quote(f.column): _literal(f.get_db_prep_save(f.get_default(), connection))
        for name, f in fields.items()
        if name not in columns and not isinstance(f, models.AutoField)
    }
    unique = [quote(fields[u].column) for u in target.unique]
    if connection.vendor == "sqlite":
        values = [_SQLITE_MOMENT if _is_moment(fields[name]) else "%s" for name in columns]
        source = f"VALUES ({', '.join([*values, *others.values()])})"
        tell = ""
    else:
        types = ", ".join(f"{quote(name)} {fields[name].db_type(connection)}" for name in columns)
        values = [f"new.{quote(name)}" for name in columns]
        source = (
            f"SELECT {', '.join([*values, *others.values()])}"  # noqa: S608 - names are ours
            f" FROM json_to_recordset(CAST(%s AS json)) AS new ({types})"
        )
        tell = f" RETURNING {', '.join(unique)}"
    table, names = quote(target.model._meta.db_table), ", ".join([*columns.values(), *others])
    changed = ", ".join(f"{c} = excluded.{c}" for c in columns.values() if c not in unique)
    return (
        f"INSERT INTO {table} ({names}) {source}"
        f" ON CONFLICT ({', '.join(unique)}) DO UPDATE SET {changed}{target.condition(using)}{tell}"
    )


_SQLITE_MOMENT = "rtrim(replace(%s, 'T', ' '), 'Z')"
"""2026-11-27T01:23:55.48Z as Django writes it there: a blank between, and no zone."""


def _is_moment(field: Any) -> bool:
    return isinstance(field, models.DateTimeField)


def _literal(default: Any) -> str:
    """A column's default in SQL. Raises `TypeError` for one that is not as plain as ours are."""
    match default:
        case None:
            return "NULL"
        case bool():
            return str(default).upper()
        case int():
            return str(default)
        case "":
            return "''"
    raise TypeError(f"no literal for {default!r}")
