from __future__ import annotations

import io
import json

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
