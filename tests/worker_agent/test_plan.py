from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.plan import (
    Drop,
    Forgive,
    GiveUp,
    Limits,
    Phase,
    Sleep,
    Standing,
    Start,
    Stop,
    Wait,
    Wake,
    Wish,
    next_step,
    pause_after,
    rest_after,
)

LIMITS = Limits(
    failures=3,
    window=100.0,
    first_pause=1.0,
    most_pause=4.0,
    first_rest=50.0,
    most_rest=150.0,
    residence=10.0,
)
NOW = 1000.0


def offered(**more):
    return Standing(Phase.DOWN, need=6, **more)


def wanted(asked_at=NOW, **more):
    return Standing(Phase.DOWN, need=more.pop("need", 6), wish=Wish.LOAD, asked_at=asked_at, **more)


def at_start(need=6, **more):
    return Standing(Phase.DOWN, need=need, wish=Wish.START, **more)


def up(need=6, last_used=0.0, **more):
    return Standing(Phase.UP, need=need, wish=Wish.LOAD, proven=True, last_used=last_used, **more)


def step(models, budget=10, now=NOW, **more):
    return next_step(models, budget, now, LIMITS, **more)


def of(found):
    """The step without its reason."""
    return (type(found), found.model)


# -- the start list ----------------------------------------------------------------------------------------


def test_the_start_list_is_loaded_in_order_one_at_a_time():
    assert of(step({"a": at_start(), "b": at_start(4)})) == (Start, "a")
    loading = Standing(Phase.LOADING, wish=Wish.START, need=6)
    assert step({"a": loading, "b": at_start(4)}) == Wait()
    assert of(step({"a": up(), "b": at_start(4)})) == (Start, "b")


def test_what_does_not_fit_beside_the_others_stays_on_offer():
    dropped = step({"a": up(), "b": at_start(5)})
    assert of(dropped) == (Drop, "b")
    assert "no room" in dropped.why


def test_an_offer_is_not_loaded_by_itself():
    assert step({"a": offered()}) == Wait()


# -- making room -------------------------------------------------------------------------------------------


def test_what_fits_pushes_nothing_out():
    assert of(step({"a": up(4), "b": wanted()})) == (Start, "b")


def test_the_least_recently_used_idle_one_goes():
    models = {"new": up(5, last_used=900.0), "old": up(5, last_used=500.0), "b": wanted(need=5)}
    found = step(models)
    assert of(found) == (Stop, "old")
    assert "b" in found.why


@pytest.mark.parametrize(
    ("standing", "says"),
    [
        (up(in_flight=1), "have work: a"),
        (up(pinned=True), "pinned: a"),
    ],
)
def test_one_with_work_or_pinned_never_goes(standing, says):
    found = step({"a": standing, "b": wanted()})
    assert isinstance(found, Wait)
    assert found.seconds is None
    assert says in found.why


def test_a_model_stays_for_its_residence():
    found = step({"a": up(up_since=NOW - 4), "b": wanted()})
    assert isinstance(found, Wait)
    assert found.seconds == pytest.approx(6.0)
    assert of(step({"a": up(up_since=NOW - 10), "b": wanted()})) == (Stop, "a")


def test_none_goes_if_all_of_them_would_not_suffice():
    models = {"idle": up(4), "busy": up(6, in_flight=2), "b": wanted(need=8)}
    found = step(models)
    assert isinstance(found, Wait)
    assert "busy" in found.why


def test_only_as_many_go_as_are_needed():
    models = {"small": up(2, last_used=1.0), "large": up(8, last_used=2.0), "b": wanted(need=8)}
    assert of(step(models)) == (Stop, "large")


def test_while_one_leaves_the_others_stay():
    leaving = Standing(Phase.LEAVING, need=6)
    found = step({"a": leaving, "c": up(4), "b": wanted()})
    assert isinstance(found, Wait)
    assert found.why == "another model is leaving"


def test_wishes_are_served_in_the_order_of_asking():
    models = {"late": wanted(asked_at=20.0), "early": wanted(asked_at=10.0)}
    assert of(step(models)) == (Start, "early")


def test_a_small_wish_passes_a_large_one_that_has_to_wait():
    models = {
        "busy": up(5, in_flight=1),
        "large": wanted(need=8, asked_at=1.0),
        "small": wanted(need=5, asked_at=2.0),
    }
    assert of(step(models)) == (Start, "small")


def test_a_second_wish_pushes_nothing_out_before_the_first():
    models = {
        "busy": up(6, in_flight=1),
        "idle": up(4),
        "large": wanted(need=10, asked_at=1.0),
        "small": wanted(need=4, asked_at=2.0),
    }
    assert step(models).model == "large"
    assert isinstance(step(models), Wait)


# -- sleep -------------------------------------------------------------------------------------------------


def test_where_it_can_sleep_it_sleeps_to_make_room():
    assert of(step({"a": up(can_sleep=True), "b": wanted()})) == (Sleep, "a")


def test_a_sleeper_is_woken_when_asked_for():
    asleep = Standing(Phase.ASLEEP, wish=Wish.LOAD, need=6, asleep_need=1)
    assert of(step({"a": asleep})) == (Wake, "a")
    assert of(step({"a": asleep, "b": up(6)})) == (Stop, "b")


def test_sleepers_are_stopped_when_what_they_keep_is_needed():
    asleep = Standing(Phase.ASLEEP, need=6, asleep_need=2)
    assert of(step({"a": asleep, "b": wanted(need=9)})) == (Stop, "a")


def test_it_is_stopped_if_sleeping_would_keep_too_much():
    assert of(step({"a": up(can_sleep=True, asleep_need=3), "b": wanted(need=8)})) == (Stop, "a")


# -- unloading, quiet hours --------------------------------------------------------------------------------


def test_what_is_told_to_leave_finishes_its_work_first():
    assert step({"a": up(leave=True, in_flight=1)}) == Wait(for_work=True)
    assert of(step({"a": up(leave=True)})) == (Stop, "a")
    assert of(step({"a": Standing(Phase.LOADING, need=6, leave=True)})) == (Stop, "a")


def test_in_quiet_hours_all_goes_and_nothing_is_loaded():
    assert of(step({"a": up(pinned=True, up_since=NOW)}, resting=True)) == (Stop, "a")
    assert step({"a": up(in_flight=1), "b": wanted()}, resting=True) == Wait(for_work=True)


# -- whose work is waited for ------------------------------------------------------------------------------


def test_a_model_that_needs_the_room_of_a_busy_one_waits_for_its_work():
    assert step({"a": up(in_flight=1), "b": wanted()}).for_work
    assert not step({"a": up(in_flight=1), "b": up(need=2)}).for_work, "nobody waits for room"


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.builds(
            Standing,
            phase=st.sampled_from(Phase),
            need=st.integers(1, 12),
            wish=st.sampled_from(Wish),
            asked_at=st.sampled_from([0.0, NOW - 1, NOW]),
            last_used=st.sampled_from([0.0, NOW - 1, NOW]),
            up_since=st.sampled_from([0.0, NOW - 1, NOW]),
            in_flight=st.integers(0, 1),
            pinned=st.booleans(),
            leave=st.booleans(),
            can_sleep=st.booleans(),
            asleep_need=st.integers(0, 3),
            proven=st.booleans(),
        ),
        min_size=1,
    ),
    st.booleans(),
)
def test_where_no_work_is_waited_for_its_end_changes_nothing(models, resting):
    found = step(models, resting=resting)
    if not isinstance(found, Wait) or found.for_work:
        return
    idle = {name: replace(it, in_flight=0) for name, it in models.items()}
    assert step(idle, resting=resting) == found


# -- failures ----------------------------------------------------------------------------------------------


def test_a_model_that_never_loaded_is_given_up_at_its_first_failure():
    found = step({"a": wanted(failures=(NOW,))})
    assert of(found) == (GiveUp, "a")
    assert found.seconds == 50.0


def test_want_of_memory_is_final_for_a_while_even_for_one_that_has_served():
    found = step({"a": wanted(failures=(NOW,), proven=True, out_of_memory=True, given_up=1)})
    assert of(found) == (GiveUp, "a")
    assert "memory" in found.why
    assert found.seconds == 100.0


def test_a_crashed_engine_is_started_again_after_a_pause():
    crashed = {"a": wanted(failures=(NOW,), proven=True)}
    assert step(crashed, now=NOW + 0.25) == Wait(0.75)
    assert of(step(crashed, now=NOW + 1.0)) == (Start, "a")


def test_pauses_and_rests_double_up_to_the_most():
    assert [pause_after(count, LIMITS) for count in range(5)] == [0.0, 1.0, 2.0, 4.0, 4.0]
    assert [rest_after(count, LIMITS) for count in range(4)] == [50.0, 100.0, 150.0, 150.0]


def test_too_many_failures_within_the_window_end_it():
    failed = {"a": wanted(failures=(NOW - 30, NOW - 20, NOW), proven=True)}
    assert of(step(failed)) == (GiveUp, "a")


def test_failures_before_the_window_are_forgotten():
    failed = {"a": wanted(failures=(1.0, 2.0, NOW - 1), proven=True)}
    assert of(step(failed)) == (Start, "a")


def test_a_model_in_its_pause_does_not_hold_up_another():
    assert of(step({"a": wanted(failures=(NOW,), proven=True), "b": at_start(4)})) == (Start, "b")


def test_after_its_rest_a_failed_model_may_be_asked_for_again():
    failed = Standing(Phase.FAILED, failures=(1.0,), failed_until=NOW)
    assert step({"a": failed}, now=NOW - 1) == Wait(1.0)
    assert of(step({"a": failed})) == (Forgive, "a")
