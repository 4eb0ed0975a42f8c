"""Logins: after five wrong passwords a name has to wait and is told how long; nothing of it is logged."""

from __future__ import annotations

import datetime
import logging
import re

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from nodes.backoffice import logins

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss():
    return get_user_model().objects.create_superuser("boss", password="the right one")


def log_in(client: Client, password: str, name: str = "boss", **more):
    return client.post(reverse("admin:login"), {"username": name, "password": password}, **more)


def test_five_wrong_passwords_are_enough_and_the_page_says_until_when(client, boss):
    answers = [log_in(client, "wrong") for _ in range(5)]
    assert [a.status_code for a in answers] == [200] * 4 + [429]
    refused = log_in(client, "the right one")
    page = refused.content.decode()
    assert refused.status_code == 429
    assert 0 < int(refused["Retry-After"]) <= 15 * 60
    (until,) = re.findall(r'<time datetime="([^"]+)"', page)
    wait = datetime.datetime.fromisoformat(until) - timezone.now()
    assert datetime.timedelta(minutes=14) < wait <= datetime.timedelta(minutes=15)
    assert "GPU Torrent" in page
    assert "axes_reset" in page


def test_trying_on_while_one_waits_makes_it_no_longer(client, boss):
    for _ in range(5):
        log_in(client, "wrong")
    AccessAttempt.objects.update(attempt_time=timezone.now() - datetime.timedelta(minutes=14))
    assert log_in(client, "wrong").status_code == 429
    AccessAttempt.objects.update(attempt_time=timezone.now() - datetime.timedelta(minutes=16))
    assert log_in(client, "the right one").status_code == 302


def test_others_and_other_addresses_are_not_locked_out(client, boss):
    get_user_model().objects.create_superuser("other", password="the right one")
    for _ in range(5):
        log_in(client, "wrong")
    assert log_in(client, "the right one", "other").status_code == 302
    assert log_in(Client(REMOTE_ADDR="192.0.2.7"), "the right one").status_code == 302


def test_what_was_typed_is_not_logged_nor_is_the_password_kept(client, boss, caplog):
    caplog.set_level(logging.DEBUG)
    for _ in range(6):
        log_in(client, "typed-password", "typed-name")
    said = caplog.text
    assert "AXES" in said
    assert "typed-password" not in said
    assert "typed-name" not in said
    (row,) = AccessAttempt.objects.values()
    assert "typed-password" not in str(row)


def test_logins_leave_no_rows_and_old_ones_are_forgotten(client, boss):
    log_in(client, "the right one")
    client.post(reverse("admin:logout"))
    assert not AccessLog.objects.exists()
    log_in(client, "wrong")
    log_in(client, "the right one")
    log_in(Client(), "wrong", "nobody")
    young, old = AccessAttempt.objects.get(), timezone.now() - datetime.timedelta(minutes=16)
    AccessAttempt.objects.create(username="x", failures_since_start=1)
    AccessAttempt.objects.filter(username="x").update(attempt_time=old)
    Session.objects.create(session_key="old", session_data="", expire_date=old)
    assert logins.tidy() == 2
    assert AccessAttempt.objects.get() == young
    assert Session.objects.exclude(session_key="old").exists()
