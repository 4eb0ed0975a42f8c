"""What two beats in a row prove about an attempt, and what they do not."""

from __future__ import annotations

import time

import pytest

from gputorrent.redis import blocking
from nodes import listing
from nodes.listing import GRACE_SECONDS, Listing, following
from tests.nodes.agents import heartbeat

NODE = "a" * 16
NOW = 1_000_000.0
NONE: frozenset[str] = frozenset()


def beats(*beats: tuple[float, set[str]], incarnation: int = 1) -> Listing:
    last = None
    for at, attempts in beats:
        last = following(last, at, incarnation, frozenset(attempts))
    assert last is not None
    return last


def kept(wire) -> Listing | None:
    packed = wire.hget(listing.KEY, NODE)
    return listing._decode(packed) if packed else None


def test_an_attempt_that_neither_of_two_beats_lists_is_not_there():
    both = beats((NOW, {"other:1"}), (NOW + 10, {"other:1"}))
    assert both.lacks("j:1", NOW - GRACE_SECONDS)
    assert not both.lacks("other:1", NOW - GRACE_SECONDS)


def test_one_beat_proves_nothing():
    assert not beats((NOW, set())).lacks("j:1", 0)


@pytest.mark.parametrize("lists", [({"j:1"}, set()), (set(), {"j:1"})])
def test_one_list_that_has_it_is_enough(lists):
    assert not beats((NOW, lists[0]), (NOW + 10, lists[1])).lacks("j:1", 0)


def test_what_was_placed_shortly_before_the_first_beat_may_not_have_been_seen_by_it():
    assert not beats((NOW, set()), (NOW + 10, set())).lacks("j:1", NOW - GRACE_SECONDS + 1)


def test_a_beat_sent_at_once_is_no_second_witness():
    both = beats((NOW, set()), (NOW + 10, {"j:1"}), (NOW + 11, set()))
    assert both.before_at == NOW
    assert not beats((NOW, set()), (NOW + 1, set())).lacks("j:1", 0)


def test_what_lasts_is_what_both_have():
    assert beats((NOW, {"a:1", "b:1"}), (NOW + 10, {"b:1", "c:1"})).lasting == {"b:1"}


def test_a_new_start_of_the_agent_knows_nothing_of_the_old_list():
    old = beats((NOW, {"j:1"}), (NOW + 10, {"j:1"}))
    new = following(old, NOW + 20, 2, NONE)
    assert new
    assert (new.before_at, new.lasting) == (0, NONE)
    assert following(new, NOW + 30, 1, frozenset({"j:1"})) is new


def test_a_beat_that_was_overtaken_changes_nothing():
    last = beats((NOW, set()), (NOW + 10, set()))
    assert following(last, NOW + 5, 1, frozenset({"j:1"})) is last


def test_a_beat_is_dated_by_its_arrival_and_by_the_clock_of_redis(wire):
    listing.take(blocking(), NODE, heartbeat(attempts=["j:1"]), time.monotonic() - 30)
    seconds, _ = wire.time()
    this = kept(wire)
    assert this
    assert this.attempts == {"j:1"}
    assert 29 < seconds + 1 - this.at < 40


def test_an_agent_without_redis_may_have_work_it_has_not_read(wire):
    listing.take(blocking(), NODE, heartbeat(redis_connected=False), time.monotonic())
    assert kept(wire) is None
