"""Real failures of the database: a table that is not there for a while."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.db import connection


@sync_to_async
def rename(table: str, to: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {to}")
    connection.close()
