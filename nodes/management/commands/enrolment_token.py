"""`manage.py enrolment_token`: make a token that lets GPU hosts in. Printed once."""

from __future__ import annotations

import argparse
import datetime
import json
import re
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from nodes.registry import new_token

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> datetime.timedelta:
    """'90m', '24h', '7d' to a time. Raises `argparse.ArgumentTypeError`."""
    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: use a number and m, h or d, such as 24h")
    return datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})


class Command(BaseCommand):
    help = "Make an enrolment token for GPU hosts. It is printed once; only its hash is kept."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--uses", type=int, default=1, help="how many hosts may enrol with it; 0: any number"
        )
        parser.add_argument("--expires", type=duration, default="24h", help="for example 90m, 24h, 7d (24h)")
        parser.add_argument("--never-expires", action="store_true")
        parser.add_argument("--approval", action="store_true", help="its hosts wait for an admin's approval")
        parser.add_argument("--note", default="", help="what it is for, shown in the admin")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["uses"] < 0:
            raise CommandError("--uses must not be negative")
        row, token = new_token(
            note=options["note"],
            expires_in=None if options["never_expires"] else options["expires"],
            max_uses=options["uses"],
            needs_approval=options["approval"],
        )
        if options["json"]:
            self.stdout.write(json.dumps({"id": row.pk, "enrolment_token": token}))
            return
        self.stdout.write(token)
        self.stderr.write("Shown once. On the GPU host:")
        self.stderr.write("  python -m worker_agent --coordinator URL --token TOKEN --model NAME")
