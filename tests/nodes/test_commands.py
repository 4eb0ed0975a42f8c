from __future__ import annotations

import datetime
import io
import json

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.utils import timezone

from gputorrent import credentials
from nodes.models import EnrolmentToken


def enrolment_token(*arguments: str) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("enrolment_token", *arguments, stdout=out, stderr=err)
    return out.getvalue().strip(), err.getvalue()


@pytest.mark.django_db
def test_a_token_is_printed_alone_and_lasts_a_day():
    token, said = enrolment_token()
    row = EnrolmentToken.objects.get()
    assert credentials.matches(token, row.token_hash)
    assert token not in said
    assert row.max_uses == 1
    assert row.expires_at
    left = row.expires_at - timezone.now()
    assert datetime.timedelta(hours=23, minutes=59) < left <= datetime.timedelta(hours=24)


@pytest.mark.django_db
def test_its_options_are_kept():
    printed, _ = enrolment_token("--uses", "0", "--never-expires", "--approval", "--note", "lab", "--json")
    row = EnrolmentToken.objects.get()
    assert (row.max_uses, row.expires_at, row.needs_approval, row.note) == (0, None, True, "lab")
    made = json.loads(printed)
    assert made["id"] == row.pk
    assert credentials.matches(made["enrolment_token"], row.token_hash)


@pytest.mark.django_db
@pytest.mark.parametrize("wrong", [["--uses", "-1"], ["--expires", "soon"], ["--expires", "0h"]])
def test_wrong_options_make_no_token(wrong):
    with pytest.raises(CommandError):
        enrolment_token(*wrong)
    assert not EnrolmentToken.objects.exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, set()),
        ({"HEARTBEAT_SECONDS": 31, "UNHEALTHY_AFTER_SECONDS": 90}, {"nodes.E001"}),
        ({"HEARTBEAT_SECONDS": 10, "UNHEALTHY_AFTER_SECONDS": 19}, {"nodes.E002"}),
        ({"LEASE_SECONDS": 3, "LEASE_REFRESH_SECONDS": 2}, {"nodes.E003"}),
        ({"REDIS_URL": "http://x"}, {"nodes.E004"}),
        ({"REDIS_PUBLIC_URL": "unix:///x"}, {"nodes.E004"}),
        ({"PRODUCTION": True, "REDIS_PUBLIC_URL": "redis://broker.lan"}, {"nodes.W001"}),
        ({"PRODUCTION": True, "REDIS_PUBLIC_URL": "rediss://broker.lan"}, set()),
    ],
)
def test_settings_that_do_not_fit_together_are_named(settings, changes, found):
    for name, value in changes.items():
        setattr(settings, name, value)
    assert {message.id for message in run_checks() if str(message.id).startswith("nodes.")} == found
