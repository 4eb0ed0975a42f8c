"""What a web process may admit by itself, without Redis: arithmetic."""

from __future__ import annotations

import pytest

from api.allowance import Allowance, Pace

PERIODS = ("2026-11-27", "2026-11")


def allowance(requests: int = 10, tokens: int = 1000, slots: int = 4) -> Allowance:
    """Good until 101, asked for at 100."""
    return Allowance(7, "a", 101.0, requests, tokens, slots, told=(80, 8000, 60_000, 61_000), at=100.0)


@pytest.mark.parametrize(
    ("given", "wanted", "now", "admitted"),
    [
        (allowance(), 1000, 100.5, True),
        (allowance(), 1001, 100.5, False),
        (allowance(), 0, 100.999, True),
        (allowance(), 0, 101.0, False),
        (allowance(requests=0), 0, 100.5, False),
        (allowance(slots=0), 0, 100.5, False),
    ],
)
def test_it_admits_what_it_has_in_its_own_second(given, wanted, now, admitted):
    assert given.take(wanted, now) == admitted
    assert given.under_way == admitted


def test_what_a_request_did_not_take_may_be_taken_anew():
    it = allowance(requests=2, tokens=100, slots=1)
    assert it.take(100, 100.1)
    assert not it.take(0, 100.1)  # one at once
    it.over(100, 30, served=True, periods=PERIODS)
    assert not it.take(71, 100.2)
    assert it.take(70, 100.2)
    it.over(70, 0, served=False, periods=PERIODS)  # the request comes back, too
    assert it.take(70, 100.3)
    it.over(70, 0, served=True, periods=PERIODS)
    assert not it.take(0, 100.4)  # two requests


def test_while_it_is_open_there_is_nothing_to_tell():
    it = allowance()
    it.take(100, 100.1)
    assert it.account() is None
    it.over(100, 30, served=True, periods=PERIODS)
    assert it.account() is None


def test_at_the_end_of_its_second_the_rest_goes_back_and_what_was_spent_is_told():
    it = allowance(requests=10, tokens=1000, slots=4)
    for _ in range(3):
        it.take(100, 100.1)
    it.over(100, 40, served=True, periods=PERIODS)
    it.close()
    assert not it.take(0, 100.2)
    # Two are under way with 200 tokens; of the others 40 were used.
    assert it.account() == ("account", 7, "a", 1, 2, 200, 7, 760, "2026-11-27", 40, "2026-11", 40)
    assert it.account() is None  # it has not been heard
    it.over(100, 150, served=True, periods=PERIODS)  # more than it had reserved
    it.over(100, 0, served=False, periods=PERIODS)
    assert it.account() is None
    it.heard()
    assert it.account() == ("account", 7, "a", 2, 0, 0, 1, 50, "2026-11-27", 150, "2026-11", 150)
    it.heard()
    assert it.account() is None


def test_requests_that_nobody_made_go_back_even_if_all_places_are_taken():
    it = allowance(requests=10, tokens=400, slots=4)
    for _ in range(4):
        it.take(100, 100.1)
    it.close()
    assert it.account() == ("account", 7, "a", 1, 4, 400, 6, 0)


def test_an_account_that_may_be_lost_is_kept_as_it_was():
    it = allowance()
    it.close()
    sent = it.account()
    assert sent is not None
    assert it.sent == sent


def test_to_close_it_twice_gives_back_nothing_more():
    it = allowance(requests=10, tokens=1000, slots=4)
    it.close()
    it.close()
    assert it.account() == ("account", 7, "a", 1, 0, 0, 10, 1000)


def test_callers_are_told_of_what_is_left_with_each_request_one_less():
    it = allowance(requests=10, tokens=1000)
    assert it.left(100.0) == (90, 9000, 60_000, 61_000)
    it.take(300, 100.2)
    assert it.left(100.5) == (89, 8700, 59_500, 60_500)
    assert it.left(200.0)[2:] == (0, 0)


# -- how much to ask for -------------------------------------------------------------------------------


def test_who_asks_seldom_is_not_provided_for():
    pace = Pace()
    for n in range(7):
        pace.begun(100.0 + n / 100)
        pace.ended()
    assert pace.wants() is None
    pace.begun(100.1)
    assert pace.wants() == (10, 2)  # a quarter more than 8, one at once and as many again


def test_the_slice_before_counts_if_it_was_the_last_one():
    pace = Pace()
    for _ in range(40):
        pace.begun(100.0)
    for _ in range(40):
        pace.ended()
    pace.begun(101.5)
    assert pace.wants() == (50, 2)
    pace.begun(104.0)  # nothing for more than a slice
    assert pace.wants() is None


def test_what_is_under_way_at_once_is_provided_for_twice():
    pace = Pace()
    for _ in range(20):
        pace.begun(100.0)
    for _ in range(15):
        pace.ended()
    assert pace.wants() == (25, 40)
