from __future__ import annotations

from typing import Any

import pytest

from jobs.routing import Candidate, Load, Place, Refuse, Wait, Why, choose, rank
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
