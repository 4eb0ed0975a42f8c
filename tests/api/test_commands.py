from __future__ import annotations

import io
import json
import re

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from api.models import ApiKey
from gputorrent import credentials
from nodes.models import EnrolmentToken

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_a_key_is_printed_once_and_only_its_hash_is_kept():
    key = run("apikey", "create", "--name", "ann").strip()
    row = ApiKey.objects.get()
    assert credentials.matches(key, row.key_hash)
    assert (row.name, row.staff, row.expires_at) == ("ann", False, None)
    assert key not in run("apikey", "list")


def test_a_keys_options_are_kept():
    made = json.loads(run("apikey", "create", "--name", "boss", "--staff", "--expires", "90d", "--json"))
    row = ApiKey.objects.get(pk=made["id"])
    assert row.staff
    assert row.expires_at
    assert 89 < (row.expires_at - row.created_at).total_seconds() / 86400 < 91
    assert credentials.matches(made["api_key"], row.key_hash)


def test_keys_are_listed_and_revoked_by_their_beginning():
    run("apikey", "create", "--name", "ann")
    run("apikey", "create", "--name", "bob", "--staff")
    ann = ApiKey.objects.get(name="ann")
    assert "revoked" in run("apikey", "revoke", f"{ann.prefix}…")
    lines = {line.split()[-1]: line for line in run("apikey", "list").splitlines()}
    assert "revoked" in lines["ann"]
    assert "staff" in lines["bob"]
    assert ann.prefix in lines["ann"]
    for wrong, why in ((ann.prefix, "revoked already"), ("sk-gt-nothing", "0 keys")):
        with pytest.raises(CommandError, match=why):
            run("apikey", "revoke", wrong)


@pytest.mark.parametrize("verb", ["create", "edit", "rotate", "revoke", "list", "show"])
def test_it_ends_when_every_web_process_has_looked(verb, settings, monkeypatch):
    settings.SNAPSHOT_SECONDS = 0.0
    run("apikey", "create", "--name", "ann")
    ann = ApiKey.objects.get().prefix
    arguments = {"create": ["--name", "bob"], "edit": [ann, "--rpm", "5"], "list": []}.get(verb, [ann])
    waited: list[float] = []
    settings.SNAPSHOT_SECONDS = 3.0
    monkeypatch.setattr("time.sleep", waited.append)
    run("apikey", verb, *arguments)
    assert waited == ([] if verb in {"list", "show"} else [6.0])


def test_bootstrap_ends_when_every_web_process_has_looked(settings, monkeypatch):
    settings.SNAPSHOT_SECONDS = 3.0
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    run("bootstrap")
    assert waited == [6.0]


def test_bootstrap_makes_what_a_first_look_needs():
    made = json.loads(run("bootstrap", "--json"))
    admin = get_user_model().objects.get(username=made["admin_user"])
    assert admin.is_superuser
    assert admin.check_password(made["admin_password"])
    assert credentials.matches(made["api_key"], ApiKey.objects.get().key_hash)
    assert ApiKey.objects.get().staff
    token = EnrolmentToken.objects.get()
    assert credentials.matches(made["enrolment_token"], token.token_hash)
    assert token.expires_at
    assert token.max_uses == 0


def test_bootstrap_again_replaces_keys_and_leaves_the_password():
    first, second = (json.loads(run("bootstrap", "--json")) for _ in range(2))
    assert second["admin_password"] is None
    assert get_user_model().objects.get().check_password(first["admin_password"])
    (key,) = ApiKey.objects.filter(revoked_at=None)
    (token,) = EnrolmentToken.objects.filter(revoked_at=None)
    assert credentials.matches(second["api_key"], key.key_hash)
    assert credentials.matches(second["enrolment_token"], token.token_hash)
    assert ApiKey.objects.count() == EnrolmentToken.objects.count() == 2


def test_bootstrap_leaves_everybody_elses_keys_alone():
    run("apikey", "create", "--name", "ann")
    run("bootstrap")
    assert ApiKey.objects.get(name="ann").revoked_at is None


def test_all_that_a_key_can_be_told_is_shown_edited_and_checked():
    get_user_model().objects.create_user("carol")
    limits = ["--rpm", "60", "--tpm", "9000", "--concurrency", "3", "--tokens-per-day", "5000"]
    rights = ["--models", "a/b,c*", "--nodes", "zone=eu one", "--priority", "-7", "--owner", "carol"]
    run("apikey", "create", "--name", "ann", "--tokens-per-month", "80000", *rights, *limits)
    row = ApiKey.objects.get()
    assert (row.allowed_models, row.allowed_nodes, row.priority) == (["a/b", "c*"], ["zone=eu", "one"], -7)
    assert (str(row.owner), row.tokens_per_month) == ("carol", 80000)
    shown = json.loads(run("apikey", "show", str(row.pk), "--json"))
    assert (shown["requests_per_minute"], shown["tokens_per_day"], shown["concurrency"]) == (60, 5000, 3)
    assert "a/b c*" in run("apikey", "show", row.prefix)
    assert "60 rpm, 9000 tpm" in run("apikey", "list")
    assert json.loads(run("apikey", "list", "--json"))[0]["owner"] == "carol"
    run(
        "apikey", "edit", row.prefix, "--models", "", "--rpm", "0", "--owner", "", "--name", "anna", "--staff"
    )
    row.refresh_from_db()
    assert (row.allowed_models, row.requests_per_minute, row.owner, row.staff) == ([], 0, None, True)
    assert (row.name, row.tokens_per_minute, row.priority) == ("anna", 9000, -7)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--priority", "101", "--priority: "), ("--rpm", "-1", "--requests-per-minute: "),
        ("--models", "a b!", "b!"), ("--models", "*x", "--models"), ("--nodes", "=x", "--nodes"),
        ("--owner", "nobody", "no user"), ("--name", "x" * 101, "--name"),
    ],
)  # fmt: skip
def test_what_a_key_cannot_be_told_is_said_and_changes_nothing(option, value, why):
    run("apikey", "create", "--name", "ann")
    before = ApiKey.objects.values().get()
    with pytest.raises(CommandError, match=re.escape(why)):
        run("apikey", "edit", str(before["id"]), f"{option}={value}")
    assert ApiKey.objects.values().get() == before
    with pytest.raises(CommandError, match="nothing to change"):
        run("apikey", "edit", str(before["id"]))


def test_a_rotated_key_is_printed_once_and_the_old_one_kept_for_the_grace():
    first = run("apikey", "create", "--name", "ann").strip()
    row = ApiKey.objects.get()
    second = run("apikey", "rotate", row.prefix, "--grace", "24h").strip()
    row.refresh_from_db()
    assert credentials.matches(second, row.key_hash)
    assert credentials.matches(first, row.previous_hash)
    assert row.previous_until
    third = json.loads(run("apikey", "rotate", str(row.pk), "--json"))["api_key"]
    row.refresh_from_db()
    assert credentials.matches(third, row.key_hash)
    assert (row.previous_hash, row.previous_until) == ("", None)
    assert not {first, second, third} & set(run("apikey", "list").split())
    run("apikey", "revoke", str(row.pk))
    with pytest.raises(CommandError, match="revoked"):
        run("apikey", "rotate", str(row.pk))
