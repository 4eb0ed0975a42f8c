from __future__ import annotations

import pytest

from worker_agent.plan import GiveUp, Limits, Phase, Standing, Start, Stop, Wait, next_step, pause_after

LIMITS = Limits(failures=3, window=100.0, first_pause=1.0, most_pause=4.0)


def test_the_first_model_given_is_started_first():
    assert next_step({"a": Standing(Phase.DOWN), "b": Standing(Phase.DOWN)}, 0.0, LIMITS) == Start("a")


@pytest.mark.parametrize("busy", [Phase.LOADING, Phase.STOPPING])
def test_one_load_at_a_time(busy):
    assert next_step({"a": Standing(busy), "b": Standing(Phase.DOWN)}, 0.0, LIMITS) == Wait()


def test_the_next_one_starts_once_the_first_is_up():
    assert next_step({"a": Standing(Phase.UP), "b": Standing(Phase.DOWN)}, 0.0, LIMITS) == Start("b")


def test_with_all_up_there_is_only_news_to_wait_for():
    assert next_step({"a": Standing(Phase.UP)}, 0.0, LIMITS) == Wait()


def test_a_model_that_never_loaded_is_given_up_at_its_first_failure():
    step = next_step({"a": Standing(Phase.DOWN, failures=(5.0,))}, 6.0, LIMITS)
    assert isinstance(step, GiveUp)
    assert step.model == "a"


def test_a_crashed_engine_is_started_again_after_a_pause():
    crashed = {"a": Standing(Phase.DOWN, failures=(10.0,), proven=True)}
    assert next_step(crashed, 10.25, LIMITS) == Wait(0.75)
    assert next_step(crashed, 11.0, LIMITS) == Start("a")


def test_pauses_double_up_to_the_most():
    assert [pause_after(count, LIMITS) for count in range(5)] == [0.0, 1.0, 2.0, 4.0, 4.0]


def test_too_many_failures_within_the_window_end_it():
    failed = {"a": Standing(Phase.DOWN, failures=(10.0, 20.0, 30.0), proven=True)}
    assert isinstance(next_step(failed, 31.0, LIMITS), GiveUp)


def test_failures_before_the_window_are_forgotten():
    failed = {"a": Standing(Phase.DOWN, failures=(10.0, 20.0, 300.0), proven=True)}
    assert next_step(failed, 301.0, LIMITS) == Start("a")


def test_a_model_in_its_pause_does_not_hold_up_another():
    models = {"a": Standing(Phase.DOWN, failures=(10.0,), proven=True), "b": Standing(Phase.DOWN)}
    assert next_step(models, 10.1, LIMITS) == Start("b")


def test_what_is_no_longer_wanted_is_stopped_and_not_started():
    assert next_step({"a": Standing(Phase.UP, wanted=False)}, 0.0, LIMITS) == Stop("a")
    assert next_step({"a": Standing(Phase.DOWN, wanted=False)}, 0.0, LIMITS) == Wait()


def test_a_failed_model_stays_failed():
    assert next_step({"a": Standing(Phase.FAILED, failures=(1.0,))}, 1e6, LIMITS) == Wait()
