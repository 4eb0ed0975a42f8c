"""The cluster's history: taken from the counts, added up as it ages, read as curves."""

from __future__ import annotations

import datetime

import pytest
from django.utils import timezone

from dashboard import history, sampling
from dashboard.models import Sample
from dashboard.sampling import EVERY
from gputorrent.redis import blocking
from jobs import metrics
from jobs.metrics import Counts
from tests.jobs.scripted import ScriptedNode

pytestmark = pytest.mark.django_db(transaction=True)


def seconds() -> int:
    now = blocking().time()
    return int(now[0])


def count(at: int, requests: int, *, errors: int = 0, tokens: int = 0, ttft: float = 0.2) -> None:
    """As if web processes had counted so much in the five seconds around `at`."""
    counts = Counts()
    counts.add(metrics.REQUESTS, "/v1/completions", "m", "whole", "completed", by=requests - errors)
    counts.add(metrics.REQUESTS, "/v1/completions", "m", "whole", "engine_error", by=errors)
    counts.add(metrics.COMPLETION_TOKENS, "m", by=tokens)
    for _ in range(requests):
        counts.observe(metrics.times(metrics.FIRST_TOKEN, "m", "whole"), ttft)
    flat = metrics.arguments(counts.pending)
    blocking().hset(f"{metrics.RECENT}{at // 5}", mapping=dict(zip(flat[::2], flat[1::2], strict=True)))


def row(at: datetime.datetime, **fields) -> Sample:
    return Sample.objects.create(**{"at": at, "span": EVERY, "covered": EVERY, **fields})


def test_a_sample_has_what_two_windows_counted_and_what_was_missed_is_made_up_for(wire):
    last = seconds() // EVERY * EVERY - EVERY
    count(last, 3, errors=1, tokens=30)
    count(last + 5, 4, tokens=40)
    count(last - 30, 5)
    taken = sampling.sample()
    assert taken >= 10
    newest = Sample.objects.get(at=datetime.datetime.fromtimestamp(last, datetime.UTC))
    assert (newest.requests, newest.errors, newest.completion_tokens) == (7, 1, 70)
    assert sum(newest.first_tokens.values()) == 7
    assert Sample.objects.get(at=datetime.datetime.fromtimestamp(last - 30, datetime.UTC)).requests == 5
    assert Sample.objects.exclude(waiting=None).count() == 1  # what is so now says nothing of before


def test_twice_at_once_is_once(wire):
    sampling.sample()
    before = Sample.objects.count()
    assert sampling.sample() <= 1  # a new ten seconds may have begun
    assert Sample.objects.count() <= before + 1


def test_old_samples_are_added_up_and_nothing_is_lost(wire):
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - datetime.timedelta(hours=3)
    for n in range(12):
        row(hour + datetime.timedelta(seconds=10 * n), requests=n, first_tokens={"0.25": n}, waiting=float(n))
    assert sampling.thin() == 10
    first, second = Sample.objects.all()
    assert (first.at, first.span, first.covered) == (hour, 60, 60)
    assert (first.requests, first.first_tokens, first.waiting) == (15, {"0.25": 15}, 2.5)
    assert (second.requests, second.at) == (51, hour + datetime.timedelta(minutes=1))
    assert sampling.thin() == 0


def test_a_minute_of_which_a_part_was_sampled_is_a_rate_over_that_part(wire):
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - datetime.timedelta(hours=3)
    parts = [row(hour + datetime.timedelta(seconds=10 * n), requests=1, nodes=n or None) for n in range(3)]
    minute = sampling.added(parts, 60)
    assert (minute.covered, minute.requests, minute.nodes) == (30, 3, 1.5)


def test_nodes_are_counted_that_can_take_work(wire):
    ScriptedNode(wire, "a" * 16)
    ScriptedNode(wire, "b" * 16).die()
    sampling.sample()
    assert Sample.objects.exclude(nodes=None).get().nodes == 1


def test_a_day_later_they_are_five_minutes_and_after_the_retention_gone(wire, settings):
    day = timezone.now().replace(minute=0, second=0, microsecond=0) - datetime.timedelta(days=2)
    for n in range(10):
        row(day + datetime.timedelta(minutes=n), span=60, covered=60, requests=1)
    sampling.thin()
    assert [(s.span, s.requests) for s in Sample.objects.all()] == [(300, 5), (300, 5)]
    settings.SAMPLE_TTL_SECONDS = 86400
    sampling.thin()
    assert not Sample.objects.exists()


def test_new_samples_stay_whole(wire):
    row(timezone.now() - datetime.timedelta(minutes=59), requests=1)
    assert sampling.thin() == 0


@pytest.mark.parametrize("name", history.RANGES)
def test_a_range_has_a_bounded_number_of_points(name):
    curves = history.read(name)
    assert 29 <= len(curves["at"]) <= 361
    assert all(len(curves[key]) == len(curves["at"]) for key in ("requests", "ttft_p95", "waiting", "nodes"))


def test_curves_are_rates_and_say_nothing_where_nothing_was_sampled(wire):
    now = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
    at = now - datetime.timedelta(seconds=60)
    row(at, requests=20, errors=5, completion_tokens=500, first_tokens={"0.25": 10, "1": 10}, waiting=3.0)
    curves = history.read("5m", now)
    here = curves["at"].index(int(at.timestamp()))
    figures = [curves[key][here] for key in ("requests", "errors", "tokens", "waiting", "running")]
    assert figures == [2.0, 0.5, 50.0, 3.0, None]
    assert curves["ttft_p50"][here] == 0.25
    assert 0.5 < curves["ttft_p95"][here] <= 1.0
    assert [r for r in curves["requests"] if r is not None] == [2.0]
    wide = history.read("6h", now)
    assert wide["requests"][wide["at"].index(int(at.timestamp()))] == 2.0


def test_the_curves_are_for_staff(client, admin_client, wire):
    assert client.get("/admin/history").status_code == 302
    answer = admin_client.get("/admin/history", {"range": "24h"})
    assert answer.json()["step"] == 300
    assert admin_client.get("/admin/history", {"range": "for ever"}).status_code == 400
