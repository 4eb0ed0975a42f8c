"""The settings as requests read them are those of Django, at all times."""

from __future__ import annotations

import pytest
from django.conf import settings as django_settings
from django.test import override_settings

from gputorrent.chosen import settings as chosen


def test_a_setting_that_changes_is_seen_and_so_is_its_return(settings):
    assert chosen.ANSWER_TOKENS_ASSUMED == django_settings.ANSWER_TOKENS_ASSUMED > 3
    settings.ANSWER_TOKENS_ASSUMED = 1
    assert chosen.ANSWER_TOKENS_ASSUMED == 1
    with override_settings(ANSWER_TOKENS_ASSUMED=2):
        assert chosen.ANSWER_TOKENS_ASSUMED == 2
    assert chosen.ANSWER_TOKENS_ASSUMED == 1
    django_settings.ANSWER_TOKENS_ASSUMED = 3  # without a word to anybody
    assert chosen.ANSWER_TOKENS_ASSUMED == 3


def test_one_that_is_taken_away_is_gone(settings):
    assert chosen.ALLOW_URLS is False
    del settings.ALLOW_URLS
    with pytest.raises(AttributeError):
        _ = chosen.ALLOW_URLS


def test_it_is_found_without_asking_django_again(settings):
    """What it is for: Django keeps what it has found where this one looks."""
    settings.ANSWER_TOKENS_ASSUMED = 7
    for _ in range(2):
        assert chosen.ANSWER_TOKENS_ASSUMED == 7
        assert vars(chosen)["ANSWER_TOKENS_ASSUMED"] == 7


def test_what_is_no_setting_is_none_here_either():
    with pytest.raises(AttributeError):
        getattr(chosen, "NOTHING_OF_THIS_NAME")  # noqa: B009 - mypy knows all settings
