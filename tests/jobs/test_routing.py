from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from jobs.explanation import explain
from jobs.routing import Hints, Load, Place, Refuse, Wait, Why, choose, rank
from jobs.scoring import Candidate
from jobs.spreading import Turns
from worker_agent.contract import ModelState as S


def node(name: str = "a", **changes: Any) -> Candidate:
    fields: dict[str, Any] = {"node": name, "state": S.READY, "takes_work": True, "slots": 4, "in_flight": 0}
    return Candidate(**{**fields, **changes})


def order(*candidates: Candidate, tried: tuple[str, ...] = ()) -> list[str]:
    decision = choose(candidates, tried)
    assert isinstance(decision, Place)
    return [scored.node for scored in decision.order]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"in_flight": 1}, {"in_flight": 2}),
        ({"in_flight": 4, "slots": 8}, {"in_flight": 3, "slots": 4}),
        ({"ttft_ms": 50.0}, {"ttft_ms": 60.0}),
        ({"weight": 2.0}, {"weight": 1.0}),
        ({"in_flight": 1, "weight": 3.0}, {"in_flight": 0, "weight": 2.0}),
        ({"kv_cache_usage": 0.6}, {"kv_cache_usage": 0.8}),
        ({"kv_cache_usage": 0.1}, {"kv_cache_usage": 0.9}),
        ({"ttft_ms": 10.0, "in_flight": 1}, {"ttft_ms": 1000.0}),
        ({"in_flight": 3}, {"in_flight": 4}),
        ({}, {"slots": 0}),
    ],
)
def test_the_better_node_comes_first_whatever_its_name(better, worse):
    assert order(node("z", **better), node("a", **worse)) == ["z", "a"]
    assert order(node("z", **worse), node("a", **better)) == ["a", "z"]


def test_equal_scores_go_to_the_emptier_node_then_to_the_first_name():
    assert order(node("b"), node("a"), node("c")) == ["a", "b", "c"]
    assert order(node("a", in_flight=4), node("b", in_flight=2, slots=2)) == ["b", "a"]


def test_a_cache_that_is_half_empty_says_nothing():
    assert rank([node(kv_cache_usage=0.5)])[0].free == 1.0
    assert rank([node(kv_cache_usage=0.75)])[0].free == 0.25
    assert rank([node(kv_cache_usage=0.75, in_flight=4)])[0].free == 0.0


def test_the_score_is_the_product_of_its_factors_and_says_so():
    fast, slow = rank([node("fast", ttft_ms=25.0), node("slow", ttft_ms=250.0, in_flight=1, weight=2.0)])
    assert (fast.free, fast.latency, fast.weight, fast.score) == (1.0, 1.0, 1.0, 1.0)
    assert (slow.free, slow.latency, slow.weight, slow.score) == (0.75, 0.5, 2.0, 0.75)
    assert str(slow) == "score 0.750 = loaded x free 0.75 x latency 0.50 x weight 2.00"


def test_a_node_without_a_measured_latency_is_taken_for_a_fast_one():
    assert rank([node("a", ttft_ms=100.0), node("b")])[0].latency == 1.0


def test_a_full_node_stays_in_the_order_since_the_board_has_the_last_word():
    assert order(node("a", in_flight=4), node("b", in_flight=9)) == ["a", "b"]


def test_nodes_that_failed_are_left_out():
    assert order(node("a"), node("b"), tried=("a",)) == ["b"]


@pytest.mark.parametrize("state", [S.LOADING, S.DOWNLOADING])
def test_it_waits_for_a_model_that_is_on_its_way(state):
    assert choose([node(state=state)]) == Wait(f"model is {state.value}")
    assert order(node("a", state=state), node("b")) == ["b"]


@pytest.mark.parametrize("state", [S.OFFERED, S.SLEEPING, S.UNLOADING])
def test_a_node_that_can_load_the_model_is_asked_to(state):
    assert choose([node(state=state)]) == Load("a")
    assert choose([node("a", state=state), node("b", state=S.LOADING)]) == Wait("model is loading")
    assert choose([node("a", state=state, fits=False), node("b", state=state)]) == Load("b")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"state": S.SLEEPING, "need": 9}, {"state": S.OFFERED, "need": 1, "memory_free": 9}),
        ({"need": 4, "memory_free": 5}, {"need": 10, "memory_free": 9}),
        ({"memory_free": 7}, {"memory_free": 5}),
        ({"memory_free": 5, "weight": 2.0}, {"memory_free": 9}),
    ],
)
def test_the_model_is_loaded_where_that_costs_least(better, worse):
    offered = {"state": S.OFFERED}
    assert choose([node("z", **{**offered, **better}), node("a", **{**offered, **worse})]) == Load("z")
    assert choose([node("z", **{**offered, **worse}), node("a", **{**offered, **better})]) == Load("a")


@pytest.mark.parametrize(
    ("candidates", "tried", "why"),
    [
        ([], (), Why.UNKNOWN_MODEL),
        ([node(takes_work=False)], (), Why.NO_WORKERS),
        ([node(takes_work=False, state=S.LOADING)], (), Why.NO_WORKERS),
        ([node(state=S.FAILED, reason="out of memory")], (), Why.LOAD_FAILED),
        ([node(state=S.OFFERED, fits=False, reason="too large")], (), Why.NEVER_FITS),
        ([node(state=S.FAILED, reason="x"), node("b", state=S.OFFERED, fits=False)], (), Why.LOAD_FAILED),
        ([node()], ("a",), Why.ALL_TRIED),
        ([node("a"), node("b", takes_work=False)], ("a",), Why.ALL_TRIED),
        ([node("a"), node("b", state=S.LOADING)], ("a", "b"), Why.ALL_TRIED),
        ([node("a", state=S.LOADING)], ("a",), Why.NO_WORKERS),
    ],
)
def test_every_refusal_has_its_reason(candidates, tried, why):
    decision = choose(candidates, tried)
    assert isinstance(decision, Refuse)
    assert decision.why == why


def test_the_reason_of_the_node_comes_with_the_refusal():
    assert choose([node(state=S.FAILED, reason="out of memory")]) == Refuse(Why.LOAD_FAILED, "out of memory")
    assert choose([node(state=S.OFFERED, fits=False, reason="large")]) == Refuse(Why.NEVER_FITS, "large")


def test_after_a_failure_it_waits_for_another_node_that_loads():
    assert choose([node("a"), node("b", state=S.LOADING)], ("a",)) == Wait("model is loading")


# -- turns, prefixes, contexts -------------------------------------------------------------------------


def hints(tokens: int = 0, prefers: str = "", **ends: float) -> Hints:
    return Hints(tokens, Turns(0.0, ends), prefers)


def ranked(*candidates: Candidate, by: Hints) -> list[str]:
    return [scored.node for scored in rank(candidates, by)]


def test_near_equals_take_turns_and_the_others_follow_by_score():
    nodes = [node("a", weight=3.0), node("b", in_flight=1), node("c", in_flight=2), node("d", in_flight=3)]
    assert ranked(*nodes, by=hints()) == ["a", "b", "c", "d"]
    assert ranked(*nodes, by=hints(a=2.0, b=1.0, c=0.0)) == ["b", "a", "c", "d"]


def test_a_few_milliseconds_mean_nothing_and_seconds_do():
    fast, near, slow = node("fast", ttft_ms=5.0), node("near", ttft_ms=15.0), node("slow", ttft_ms=900.0)
    found = {scored.node: scored for scored in rank([fast, near, slow])}
    assert found["near"].in_turn
    assert found["near"].latency > 0.9
    assert not found["slow"].in_turn


def test_a_heavy_node_keeps_its_turn_while_it_has_room_and_carries_no_more_than_its_share():
    light, heavy = node("light", slots=16, in_flight=4), node("heavy", slots=16, in_flight=9, weight=2.0)
    assert all(scored.in_turn for scored in rank([light, heavy]))
    overloaded = replace(heavy, in_flight=12)
    assert [s.in_turn for s in rank([light, overloaded])] == [True, False]
    assert [s.in_turn for s in rank([light, replace(heavy, weight=1.0)])] == [True, False]


def test_the_node_that_knows_the_prompt_comes_first_while_it_is_not_much_busier():
    by = hints(prefers="b", a=0.0, b=5.0)
    assert ranked(node("a"), node("b"), by=by) == ["b", "a"]
    assert ranked(node("a"), node("b", in_flight=2), by=by) == ["b", "a"]
    assert ranked(node("a"), node("b", in_flight=3), by=by) == ["a", "b"]
    assert ranked(node("a", in_flight=4), node("b", in_flight=4), by=by) == ["a", "b"]
    assert ranked(node("a", weight=4.0), node("b"), by=by) == ["b", "a"]
    assert order(node("a"), node("b", state=S.LOADING)) == ["a"]


def test_a_prefix_and_a_turn_are_named_in_the_explanation():
    first, second = rank([node("a"), node("b", weight_from="L4")], hints(prefers="b"))
    assert str(first) == "score 1.000 = loaded x free 1.00 x latency 1.00 x weight 1.00 (L4), prefix"
    assert str(second).endswith(", in turn")


def test_nodes_whose_context_is_too_small_are_left_out_and_barred_from_the_wait():
    small, large, unknown = node("a", max_model_len=4096), node("b", max_model_len=8192), node("c")
    decision = choose([small, large, unknown], (), hints(5000))
    assert isinstance(decision, Place)
    assert {s.node for s in decision.order} == {"b", "c"}
    assert decision.barred == {"a"}
    assert choose([small, large], (), hints(4096)) == choose([small, large])


def test_where_no_context_is_large_enough_the_largest_says_so():
    nodes = [node("a", max_model_len=4096), node("b", max_model_len=8192), node("c", max_model_len=8192)]
    decision = choose(nodes, (), hints(9000))
    assert isinstance(decision, Place)
    assert {s.node for s in decision.order} == {"b", "c"}


@pytest.mark.parametrize(
    ("larger", "decision"),
    [
        ({"state": S.SLEEPING, "max_model_len": 8192}, Load("b", frozenset("a"))),
        ({"state": S.LOADING, "max_model_len": 8192}, Wait("model is loading", frozenset("a"))),
    ],
)
def test_a_context_that_is_large_enough_is_worth_loading(larger, decision):
    assert choose([node("a", max_model_len=4096), node("b", **larger)], (), hints(5000)) == decision


@pytest.mark.parametrize(
    "other",
    [
        {"state": S.OFFERED},
        {"state": S.OFFERED, "max_model_len": 4096},
        {"state": S.OFFERED, "max_model_len": 8192, "fits": False},
        {"state": S.FAILED, "max_model_len": 8192},
        {"max_model_len": 8192, "takes_work": False},
    ],
)
def test_nothing_is_loaded_only_to_find_out_how_large_its_context_is(other):
    decision = choose([node("a", max_model_len=4096), node("b", **other)], (), hints(5000))
    assert isinstance(decision, Place)
    assert [s.node for s in decision.order] == ["a"]


def test_a_large_node_that_failed_is_not_replaced_by_one_that_must_refuse():
    nodes = [node("a", max_model_len=4096), node("b", max_model_len=8192)]
    assert choose(nodes, ("b",), hints(5000)) == Refuse(Why.ALL_TRIED)


CANDIDATES = st.builds(
    Candidate,
    node=st.sampled_from([f"n{i}" for i in range(6)]),
    state=st.sampled_from(list(S)),
    takes_work=st.booleans(),
    slots=st.integers(0, 4),
    in_flight=st.integers(0, 6),
    kv_cache_usage=st.floats(0, 1),
    ttft_ms=st.floats(0, 1e6),
    weight=st.floats(0.01, 1000),
    max_model_len=st.sampled_from([0, 2048, 8192]),
    fits=st.booleans(),
    memory_free=st.integers(0, 9),
    need=st.integers(0, 9),
    breaker=st.sampled_from(["", "", "open", "half_open"]),
)


@given(
    st.lists(CANDIDATES, unique_by=lambda c: c.node),
    st.sets(st.sampled_from([f"n{i}" for i in range(6)])),
    st.integers(0, 10_000),
    st.sampled_from(["", *(f"n{i}" for i in range(6))]),
    st.dictionaries(st.sampled_from([f"n{i}" for i in range(6)]), st.floats(0, 100)),
    st.randoms(),
)
def test_the_order_holds_each_node_that_may_serve_once_and_no_other(
    candidates, tried, tokens, prefers, ends, random
):
    by = hints(tokens, prefers, **ends)
    decision = choose(candidates, tried, by)
    shuffled = list(candidates)
    random.shuffle(shuffled)
    if isinstance(decision, Place):
        asked = [s.node for s in decision.order]
        able = {c.node for c in candidates if c.takes_work and c.state == S.READY} - tried - decision.barred
        open_ones = {c.node for c in candidates if c.breaker == "open"}
        assert len(asked) == len(set(asked))
        assert set(asked) == (able - open_ones or able)
        assert choose(shuffled, tried, by) == decision
    elif isinstance(decision, Load):
        assert decision.node not in tried | decision.barred
    assert type(choose(shuffled, tried, by)) is type(decision)
    explain(candidates, by)


def test_the_explanation_names_an_open_breaker_and_the_shares_of_the_others():
    nodes = [node("a", weight=3.0), node("b"), node("c", breaker="open"), node("d", in_flight=4)]
    _, rows = explain(nodes, Hints())
    assert [(r.candidate.node, r.rank, r.share, r.why_not) for r in rows] == [
        ("a", 1, 0.75, ""),
        ("b", 2, 0.25, ""),
        ("d", 3, 0.0, "full: only waiting jobs"),
        ("c", 0, 0.0, "its breaker is open: too many faults"),
    ]
