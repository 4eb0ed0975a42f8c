"""Pauses that end together."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputorrent import background
from gputorrent.background import remaining

lengths = st.sampled_from([0.01, 0.25, 1.0, 2.0, 5.0])
moments = st.floats(min_value=1.0, max_value=1e7)


@given(moments, st.floats(min_value=0.0, max_value=0.999), lengths)
def test_who_pauses_a_little_later_goes_on_at_the_same_moment_or_the_one_after(now, later, seconds):
    first, second = now + remaining(now, seconds), now + later * seconds
    second += remaining(second, seconds)
    apart = (second - first) / seconds
    assert apart == pytest.approx(round(apart), abs=1e-4)
    assert round(apart) in {0, 1}


@given(moments, lengths)
def test_a_pause_is_about_as_long_as_was_asked(now, seconds):
    assert 0.5 * seconds <= remaining(now, seconds) <= 1.5 * seconds


@given(moments)
def test_a_longer_pause_ends_with_shorter_ones(now):
    end = now + remaining(now, 5.0)
    before = end - 0.2
    assert before + remaining(before, 0.25) == pytest.approx(end, abs=1e-6)


async def test_it_waits_for_that_moment():
    began = asyncio.get_running_loop().time()
    await background.pause(0.05)
    assert asyncio.get_running_loop().time() - began >= 0.02
