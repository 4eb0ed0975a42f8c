"""`manage.py apikey create|list|show|edit|rotate|revoke`: the keys that open /v1."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from api.admin import limits_in_words
from api.authentication import edit, let_all_look, new_key, revoke, rotate
from api.models import ApiKey, among, places
from nodes.management.commands.enrolment_token import duration

_LIMITS = {
    "concurrency": "requests at once",
    "requests_per_minute": "requests in any 60 seconds",
    "tokens_per_minute": "tokens in any 60 seconds",
    "tokens_per_day": "tokens a day (UTC)",
    "tokens_per_month": "tokens a month (UTC)",
}
_CHANGES = frozenset({"create", "edit", "rotate", "revoke"})
_SHORT = {"requests_per_minute": "--rpm", "tokens_per_minute": "--tpm"}


def words(text: str) -> list[str]:
    """'a,b' or 'a b' to a list; nothing to an empty one."""
    return [word for word in re.split(r"[\s,]+", text) if word]


class Command(BaseCommand):
    help = (
        "Make, list, show, edit, rotate and revoke API keys. A key is printed once; only its hash is kept. "
        "KEY is its number, or the first characters as listed."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        create = verbs.add_parser("create", help="make a key and print it, this once")
        create.add_argument("--name", required=True)
        _options(create)
        create.add_argument("--json", action="store_true")
        listing = verbs.add_parser("list", help="all keys, newest first")
        listing.add_argument("--json", action="store_true")
        show = verbs.add_parser("show", help="one key with all that it may do")
        change = verbs.add_parser("edit", help="change what is given, leave the rest")
        change.add_argument("--name")
        _options(change)
        turn = verbs.add_parser("rotate", help="give it a new secret and print that, this once")
        turn.add_argument(
            "--grace",
            type=duration,
            default=None,
            help="how long the old secret stays good: 24h, 7d (not at all)",
        )
        take_back = verbs.add_parser("revoke", help="refuse it from now on")
        for verb in (show, change, turn, take_back):
            verb.add_argument("key", metavar="KEY")
        for verb in (show, turn):
            verb.add_argument("--json", action="store_true")

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        try:
            getattr(self, f"_{verb}")(**options)
        except ValidationError as e:
            told = e.message_dict if hasattr(e, "error_dict") else {"": e.messages}
            lines = [f"{f'--{_flag(name)}: ' if name else ''}{' '.join(said)}" for name, said in told.items()]
            raise CommandError("; ".join(lines)) from None
        if verb in _CHANGES:
            # A script goes on with the key that was printed, or takes a revoked one for useless.
            self.stdout.flush()
            let_all_look()

    def _create(self, *, name: str, json: bool, **options: Any) -> None:
        given = _given(options)
        row, key = new_key(name, **given)
        self._warn(row)
        self.stdout.write(_json({"id": row.pk, "api_key": key}) if json else key)

    def _list(self, *, json: bool, **_: Any) -> None:
        keys = ApiKey.objects.select_related("owner")
        if json:
            self.stdout.write(_json([_shown(key) for key in keys]))
            return
        for key in keys:
            state = "staff" if key.staff and key.state == "valid" else key.state
            limits = limits_in_words(key)
            more = f"  ({limits})" if limits != "-" else ""
            line = f"{key.pk:<4} {key.prefix}…  {state:8} {key.created_at:%Y-%m-%d}{more}  {key.name}"
            self.stdout.write(line)

    def _show(self, *, key: str, json: bool, **_: Any) -> None:
        shown = _shown(_find(key))
        if json:
            self.stdout.write(_json(shown))
            return
        for name, value in shown.items():
            text = " ".join(value) if isinstance(value, list) else value
            self.stdout.write(f"{name:20} {'-' if text in ('', None) else text}")

    def _edit(self, *, key: str, **options: Any) -> None:
        row, given = _find(key), _given(options)
        if options.get("name"):
            given["name"] = options["name"]
        if not given:
            raise CommandError("nothing to change: see `apikey edit --help`")
        edit(row, **given)
        self._warn(row)
        self.stdout.write(f"changed {row}")

    def _rotate(self, *, key: str, grace: Any, json: bool, **_: Any) -> None:
        row = _find(key)
        secret = rotate(row, grace_seconds=grace.total_seconds() if grace else 0)
        self.stdout.write(_json({"id": row.pk, "api_key": secret}) if json else secret)

    def _revoke(self, *, key: str, **_: Any) -> None:
        row = _find(key)
        if row.revoked_at:
            raise CommandError(f"{row} was revoked already")
        revoke(row)
        self.stdout.write(f"revoked {row}")

    def _warn(self, row: ApiKey) -> None:
        if row.allowed_nodes and not among(row.allowed_nodes, places()):
            self.stderr.write(
                "Note: none of its nodes is known now; its requests are refused until one joins."
            )


def _options(parser: argparse.ArgumentParser) -> None:
    """What a key can be told, the same for `create` and `edit`; None is what was not given."""
    parser.add_argument("--owner", default=None, help="a user of the admin; '' for nobody")
    staff = parser.add_mutually_exclusive_group()
    staff.add_argument(
        "--staff", action="store_true", default=None, help="may also read /workers and /cluster/status"
    )
    staff.add_argument("--no-staff", action="store_false", dest="staff")
    expiry = parser.add_mutually_exclusive_group()
    expiry.add_argument("--expires", type=duration, default=None, help="for example 24h, 90d (never)")
    expiry.add_argument("--never-expires", action="store_true")
    parser.add_argument(
        "--models", type=words, default=None, dest="allowed_models", metavar="NAME,BEGIN*", help="'' for all"
    )
    parser.add_argument(
        "--nodes",
        type=words,
        default=None,
        dest="allowed_nodes",
        metavar="NAME,ID,K=V",
        help="only these may see its prompts; '' for all",
    )
    parser.add_argument("--priority", type=int, default=None, help="-100 to 100 (0)")
    for name, what in _LIMITS.items():
        flags = [flag for flag in (f"--{_flag(name)}", _SHORT.get(name)) if flag]
        parser.add_argument(*flags, type=int, default=None, dest=name, help=f"{what}; 0 for no limit (0)")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ApiKey` that were given. Raises `CommandError` for an unknown owner."""
    names = ("staff", "allowed_models", "allowed_nodes", "priority", *_LIMITS)
    given = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("expires"):
        given["expires_at"] = timezone.now() + options["expires"]
    elif options.get("never_expires"):
        given["expires_at"] = None
    owner = options.get("owner")
    if owner is not None:
        users = get_user_model().objects
        given["owner"] = users.filter(username=owner).first() if owner else None
        if owner and given["owner"] is None:
            raise CommandError(f"there is no user {owner!r}")
    return given


def _find(text: str) -> ApiKey:
    """A key by its number or its beginning. Raises `CommandError`."""
    if text.isascii() and text.isdigit():
        found = list(ApiKey.objects.filter(pk=int(text)))
    else:
        # Two keys may begin alike; one that is still good is meant then.
        found = list(ApiKey.objects.filter(prefix=text.rstrip("…")))
        found = [key for key in found if not key.revoked_at] if len(found) > 1 else found
    if len(found) != 1:
        raise CommandError(f"{len(found)} keys are {text!r}: see `apikey list`")
    return found[0]


def _flag(name: str) -> str:
    return {"allowed_models": "models", "allowed_nodes": "nodes"}.get(name, name).replace("_", "-")


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.pk,
        "name": key.name,
        "prefix": key.prefix,
        "state": key.state,
        "staff": key.staff,
        "owner": key.owner.get_username() if key.owner else None,
        "created_at": key.created_at.isoformat(timespec="seconds"),
        "expires_at": key.expires_at.isoformat(timespec="seconds") if key.expires_at else None,
        "old_secret_until": key.previous_until.isoformat(timespec="seconds") if key.previous_until else None,
        "models": key.allowed_models,
        "nodes": key.allowed_nodes,
        "priority": key.priority,
        **{name: getattr(key, name) for name in _LIMITS},
    }


_json = json.dumps
