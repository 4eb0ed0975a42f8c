"""`manage.py apikey create|list|revoke`: the keys that open /v1."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from api.authentication import new_key, revoke
from api.models import ApiKey
from nodes.management.commands.enrolment_token import duration


class Command(BaseCommand):
    help = "Make, list and revoke API keys. A key is printed once; only its hash is kept."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        create = verbs.add_parser("create")
        create.add_argument("--name", required=True)
        create.add_argument("--staff", action="store_true", help="may also read /workers and /cluster/status")
        create.add_argument("--expires", type=duration, default=None, help="for example 24h, 90d (never)")
        create.add_argument("--json", action="store_true")
        verbs.add_parser("list")
        take_back = verbs.add_parser("revoke")
        take_back.add_argument("prefix", help="the first characters of the key, as listed")

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        getattr(self, f"_{verb}")(**options)

    def _create(self, *, name: str, staff: bool, expires: Any, json: bool, **_: Any) -> None:
        seconds = expires.total_seconds() if expires else None
        row, key = new_key(name, staff=staff, expires_in_seconds=seconds)
        if json:
            self.stdout.write(_json({"id": row.pk, "api_key": key}))
        else:
            self.stdout.write(key)

    def _list(self, **_: Any) -> None:
        for key in ApiKey.objects.all():
            state = "revoked" if key.revoked_at else "staff" if key.staff else "valid"
            self.stdout.write(f"{key.prefix}…  {state:8} {key.created_at:%Y-%m-%d}  {key.name}")

    def _revoke(self, *, prefix: str, **_: Any) -> None:
        found = list(ApiKey.objects.filter(prefix=prefix.rstrip("…"), revoked_at=None))
        if len(found) != 1:
            raise CommandError(f"{len(found)} valid keys have the prefix {prefix!r}: see `apikey list`")
        revoke(found[0])
        self.stdout.write(f"revoked {found[0]}")


_json = json.dumps
