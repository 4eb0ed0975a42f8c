"""What happened lately, in words."""

from __future__ import annotations

import pytest

from dashboard import feed
from dashboard.feed import BreakerTold
from dashboard.state import Event, Level


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("gone", "online", (Level.FINE, "is online: r")),
        ("online", "unhealthy", (Level.BAD, "does not answer: r")),
        ("online", "online", (Level.NOTE, "r")),
        ("", "some state of a later version", (Level.NOTE, "r")),
    ],
)
def test_a_node_s_row_says_what_it_came_to_or_only_why(was, now, told):
    event = feed.of_node(1.0, "a", "lab", was, now, "r")
    assert (event.level, event.text) == told


@pytest.mark.parametrize(
    ("opening", "said"),
    [(0, "works again with x/m: its breaker closed"), (1, "its breaker opened"), (2, "opened again")],
)
def test_a_breaker_is_told_with_its_node_s_name_and_the_whole_model(opening, said):
    event = feed.of_breaker(BreakerTold(1.0, "a/x/m", opening), {"a": "lab"})
    assert event.text.endswith(said)
    assert (event.subject, "x/m" in event.text) == ("lab", True)


def test_the_newest_are_shown_and_not_without_end():
    events = [Event(float(n), Level.NOTE, "a", "b", "node", "c") for n in range(50)]
    assert [e.at for e in feed.merged(events)] == [float(n) for n in range(49, 19, -1)]
