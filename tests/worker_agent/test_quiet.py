from __future__ import annotations

import datetime

import pytest

from worker_agent import quiet

WORK = "Mon-Fri 09:00-18:00"
NIGHT = "22:00-06:00"


def at(day, clock):
    """A moment in a week whose Monday is the first."""
    hour, minute = map(int, clock.split(":"))
    return datetime.datetime(2024, 1, day, hour, minute, 30)


MON, FRI, SAT, SUN = 1, 5, 6, 7


@pytest.mark.parametrize(
    ("text", "now", "end"),
    [
        (WORK, at(MON, "08:59"), None),
        (WORK, at(MON, "09:00"), "01 18:00"),
        (WORK, at(FRI, "17:59"), "05 18:00"),
        (WORK, at(FRI, "18:00"), None),
        (WORK, at(SAT, "12:00"), None),
        (NIGHT, at(SUN, "23:00"), "08 06:00"),
        (NIGHT, at(MON, "05:59"), "01 06:00"),
        (NIGHT, at(MON, "06:00"), None),
        ("Sun 22:00-06:00", at(MON, "03:00"), "01 06:00"),
        ("Fri-Mon 10:00-11:00", at(SUN, "10:30"), "07 11:00"),
        ("Sat 10:00-24:00, sunday 00:00-08:00", at(SAT, "10:00"), "07 08:00"),
        ("Mon 09:00-12:00,Mon 11:00-13:00", at(MON, "09:30"), "01 13:00"),
        ("00:00-24:00", at(MON, "12:00"), "08 12:00"),
        ("00:00-00:00", at(MON, "12:00"), "08 12:00"),
    ],
)
def test_until(text, now, end):
    found = quiet.until(quiet.parse(text), now)
    assert (found and f"{found:%d %H:%M}") == end


@pytest.mark.parametrize(
    ("text", "now", "change"),
    [
        (WORK, at(MON, "08:00"), "01 09:00"),
        (WORK, at(MON, "10:00"), "01 18:00"),
        (WORK, at(FRI, "18:00"), "08 09:00"),
        (NIGHT, at(SUN, "12:00"), "07 22:00"),
        ("", at(SUN, "12:00"), None),
    ],
)
def test_next_change(text, now, change):
    found = quiet.next_change(quiet.parse(text), now)
    assert (found and f"{found:%d %H:%M}") == change


@pytest.mark.parametrize(
    "text", ["9-18", "Mon 09:00", "Mon-Xyz 09:00-10:00", "25:00-26:00", "09:60-10:00", "24:00-06:00", "Mon"]
)
def test_what_is_not_a_schedule(text):
    with pytest.raises(ValueError, match=r"\d|day|not like"):
        quiet.parse(text)
