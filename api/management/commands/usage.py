"""`manage.py usage`: what keys have used, as a table or as CSV."""

from __future__ import annotations

import argparse
import csv
import datetime
import io
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from api import usage


def day(text: str) -> datetime.date:
    """'2026-11-30' to a date. Raises `argparse.ArgumentTypeError`."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use a day such as 2026-11-30") from None


class Command(BaseCommand):
    help = "Sums of requests, tokens and GPU-seconds by day, key and model. Days are those of UTC."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--start", type=day, default=None, help="first day (30 days back)")
        parser.add_argument("--end", type=day, default=None, help="last day (today)")
        parser.add_argument("--key", type=int, default=None, help="number of one key (all)")
        parser.add_argument("--group-by", default="day,key,model", help="of day, key, model (all three)")
        parser.add_argument("--csv", action="store_true", help="with commas and all digits")

    def handle(self, *args: Any, **options: Any) -> None:
        end = options["end"] or timezone.now().astimezone(datetime.UTC).date()
        start = options["start"] or end - datetime.timedelta(days=29)
        groups = [g for g in dict.fromkeys(options["group_by"].split(",")) if g]
        if not groups or not set(groups) <= set(usage.GROUPS):
            raise CommandError(f"--group-by takes {', '.join(usage.GROUPS)}")
        rows = usage.grouped(usage.select(start, end, options["key"]), groups)
        text = io.StringIO()
        usage.write_csv(rows, groups, text)
        lines = text.getvalue().splitlines()
        self.stdout.write("\n".join(lines if options["csv"] else _table(lines)))


def _table(lines: list[str]) -> list[str]:
    cells = list(csv.reader(lines))
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
