"""Figures as people read them."""

from __future__ import annotations

import pytest

from nodes.backoffice import words

GIB = 1024**3


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (12 * GIB, 80 * GIB, "12.0 of 80.0 GiB"),
        (GIB // 2, 24 * GIB, "0.5 of 24.0 GiB"),
        (0, 512 * 1024**2, "0.0 of 512.0 MiB"),
        (0, 0, "-"),
    ],
)
def test_a_share_is_told_in_the_unit_of_the_whole(part, whole, said):
    assert words.share(part, whole) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (0.0852, "85 ms"), (1.239, "1.24 s"), (12.3, "12.3 s"), (250, "4 min 10 s"), (7200, "2 h")],
)
def test_a_duration_has_two_units_at_most(seconds, said):
    assert words.duration(seconds) == said
