"""`manage.py bootstrap`: what a first look needs: an admin user, an enrolment token and an API key."""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.utils import timezone

from api.authentication import let_all_look, new_key, revoke
from api.models import ApiKey
from nodes.models import EnrolmentToken
from nodes.registry import new_token

_NAME = "demo"
_ADMIN = "admin"


class Command(BaseCommand):
    help = (
        "Make an admin user (once), and a new enrolment token and API key, replacing those of the last call."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        users = get_user_model().objects
        password = None
        if not users.filter(username=_ADMIN).exists():
            password = secrets.token_urlsafe(12)
            users.create_superuser(_ADMIN, "", password)
        for old in ApiKey.objects.filter(name=_NAME, revoked_at=None):
            revoke(old)
        EnrolmentToken.objects.filter(note=_NAME, revoked_at=None).update(revoked_at=timezone.now())
        _, key = new_key(_NAME, staff=True)
        _, token = new_token(note=_NAME, expires_in=datetime.timedelta(hours=24), max_uses=0)
        made = {"admin_user": _ADMIN, "admin_password": password, "enrolment_token": token, "api_key": key}
        let_all_look()  # the key is used at once
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        for name, value in made.items():
            self.stdout.write(f"{name}: {value or '(unchanged)'}")
