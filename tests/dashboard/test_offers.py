"""What can be asked of a model, in words."""

from __future__ import annotations

import pytest

from dashboard.offers import offer
from jobs.routing import Candidate
from worker_agent.contract import ModelState


def candidate(state: ModelState, **changes) -> Candidate:
    fields = {
        "node": "a",
        "state": state,
        "takes_work": True,
        "slots": 1,
        "in_flight": 0,
        "kv_cache_usage": 0.0,
        "ttft_ms": 0.0,
        "max_model_len": 100,
    }
    return Candidate(**{**fields, **changes})


@pytest.mark.parametrize(
    ("candidates", "state", "words", "usable"),
    [
        ([candidate(ModelState.READY), candidate(ModelState.READY)], "loaded", "loaded on 2 nodes", True),
        ([candidate(ModelState.OFFERED), candidate(ModelState.READY)], "loaded", "loaded on 1 node", True),
        ([candidate(ModelState.LOADING), candidate(ModelState.SLEEPING)], "loading", "loaded", True),
        ([candidate(ModelState.SLEEPING)], "asleep", "wakes", True),
        ([candidate(ModelState.OFFERED)], "cold", "first request", True),
        ([candidate(ModelState.OFFERED, fits=False, reason="too big")], "failed", "too big", False),
        ([candidate(ModelState.FAILED, reason="no such file")], "failed", "no such file", False),
        ([candidate(ModelState.READY, takes_work=False)], "away", "no node", False),
        ([], "away", "no node", False),
    ],
)
def test_the_best_of_the_nodes_says_how_a_model_stands(candidates, state, words, usable):
    shown = offer("m", candidates)
    assert (shown["state"], shown["usable"]) == (state, usable)
    assert words in shown["words"]


def test_the_longest_context_of_those_who_would_answer_is_shown():
    nodes = [
        candidate(ModelState.READY, max_model_len=5),
        candidate(ModelState.READY, max_model_len=9),
        candidate(ModelState.OFFERED, max_model_len=50),
    ]
    assert offer("m", nodes)["max_model_len"] == 9
    assert offer("m", nodes[2:])["max_model_len"] == 50
