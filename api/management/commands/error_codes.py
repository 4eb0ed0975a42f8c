"""`manage.py error_codes`: write docs/errors.md from the table, or say whether it is stale."""

from __future__ import annotations

import argparse
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from api.error_codes import document

PAGE = "docs/errors.md"


class Command(BaseCommand):
    help = f"Write {PAGE}, the page of all error codes, from the table in api/error_codes.py."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is stale")

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        path = settings.BASE_DIR / PAGE
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != document():
                raise CommandError(f"{PAGE} is stale: run `manage.py error_codes`")
            return
        path.write_text(document(), encoding="utf-8")
        self.stdout.write(f"wrote {PAGE}")
