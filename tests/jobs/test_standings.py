"""What is kept between two looks at the nodes says what `routing.choose` would say."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jobs import routing
from jobs.routing import Hints, Place, Refuse, Why, choose
from jobs.scoring import Candidate
from jobs.spreading import Spreading
from jobs.standings import FEW, Standings
from worker_agent.contract import ModelState as S


@dataclass
class Cluster:
    """Nodes of one model, what is in flight on them, and one process's turns and standings."""

    nodes: list[Candidate]
    in_flight: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        self.standings = Standings(self.candidates, lambda model: (c.max_model_len for c in self.nodes))
        self.spreading = Spreading(self.standings.touch)

    def candidates(self, model: str, only: frozenset[str] | None) -> list[Candidate]:
        self.asked += 1
        return [
            Candidate(
                node=c.node,
                state=c.state,
                takes_work=True,
                slots=c.slots,
                in_flight=self.in_flight.get(f"{c.node}/m", 0),
                ttft_ms=c.ttft_ms,
                weight=c.weight,
                max_model_len=c.max_model_len,
                breaker=c.breaker,
            )
            for c in self.nodes
            if only is None or c.node in only
        ]

    def hints(self, tokens: int = 0, prefers: str = "") -> Hints:
        return Hints(tokens, self.spreading.turns("m"), prefers)

    def decide(self, tokens=0, prefers="", only=None, tried=()) -> routing.Decision:
        return self.standings.decide("m", self.in_flight, self.hints(tokens, prefers), only, tried)

    def place(self, taken: int, **how) -> Place:
        """Decide, and let the board take the n-th of the order."""
        decision = self.decide(**how)
        assert isinstance(decision, Place)
        scored = decision.order[taken % len(decision.order)]
        self.spreading.take("m", decision.order).settle(scored)
        self.add(scored.node, 1)
        return decision

    def add(self, node: str, by: int) -> None:
        self.in_flight[f"{node}/m"] = max(0, self.in_flight.get(f"{node}/m", 0) + by)
        self.standings.touch("m", node)


def a_node(n: int, **changes) -> Candidate:
    fields = {"state": S.READY, "takes_work": True, "slots": 4, "in_flight": 0, **changes}
    return Candidate(node=f"n{n:03}", **fields)


NODES = st.lists(
    st.fixed_dictionaries(
        {
            "slots": st.integers(1, 4),
            "ttft_ms": st.sampled_from([0.0, 20.0, 30.0, 900.0]),
            "weight": st.sampled_from([0.5, 1.0, 2.0]),
            "max_model_len": st.sampled_from([0, 2048, 8192]),
            "breaker": st.sampled_from(["", "", "open"]),
        }
    ),
    min_size=1,
    max_size=7,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "leave", "look"]),
        st.integers(0, 6),  # which of the order the board takes, or which node has a request less
        st.sampled_from([0, 100, 3000, 9000]),  # tokens
        st.integers(0, 8),  # the node that knows the prompt
        st.sets(st.integers(0, 6), max_size=2),  # tried
    ),
    max_size=40,
)


@given(NODES, STEPS)
def test_in_a_small_cluster_the_order_is_that_of_a_fresh_choice(nodes, steps):
    cluster = Cluster([a_node(n, **fields) for n, fields in enumerate(nodes)])
    for what, n, tokens, prefers, tried in steps:
        how = {"tokens": tokens, "prefers": f"n{prefers:03}", "tried": {f"n{t:03}" for t in tried}}
        fresh = choose(cluster.candidates("m", None), how["tried"], cluster.hints(tokens, how["prefers"]))
        assert cluster.decide(**how) == fresh
        if what == "place" and isinstance(fresh, Place):
            cluster.place(n, **how)
        elif what == "leave":
            cluster.add(f"n{n:03}", -1)
        elif what == "look":
            cluster.standings.clear()


@given(st.integers(9, 60), st.lists(st.integers(0, 7), max_size=80))
def test_in_a_large_one_the_few_and_the_others_are_all_of_them_once(count, takes):
    cluster = Cluster([a_node(n, slots=3, ttft_ms=20.0 + n % 5) for n in range(count)])
    for take in takes:
        decision = cluster.place(take)
        assert len(decision.order) == FEW
        assert decision.later is not None
        names = [s.node for s in decision.order] + list(decision.later())
        assert sorted(names) == [c.node for c in cluster.nodes]
        assert [getattr(decision.scored(name), "node", "") for name in names] == names
        free = [s.free for s in decision.order]
        full = [n for n in names if cluster.in_flight.get(f"{n}/m", 0) > 3]
        assert min(free) >= 0
        assert not full or len(full) + FEW >= count or decision.order[0].node not in full


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([20.0, 900.0])), min_size=12, max_size=40
    ),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40)), max_size=60),
)
def test_in_a_large_one_it_is_exact_too_while_all_have_room(nodes, takes):
    cluster = Cluster([a_node(n, slots=10**6, weight=w, ttft_ms=t) for n, (w, t) in enumerate(nodes)])
    for take, prefers in takes:
        by = cluster.hints(prefers=f"n{prefers:03}")
        fresh = choose(cluster.candidates("m", None), (), by)
        assert isinstance(fresh, Place)
        assert cluster.place(take, prefers=by.prefers).order == fresh.order[:FEW]


@pytest.mark.parametrize("seed", [4, 7, 10])
def test_it_stays_exact_when_turns_have_come_round(seed):
    """Long enough for the clock to move on, with turns that are given back: few steps do not get there."""
    chance = random.Random(seed)
    weights = [chance.choice([1.0, 2.0]) for _ in range(12)]
    cluster = Cluster([a_node(n, slots=10**6, weight=w) for n, w in enumerate(weights)])
    for _ in range(200):
        by = cluster.hints(prefers=f"n{chance.randrange(60):03}")
        fresh = choose(cluster.candidates("m", None), (), by)
        assert isinstance(fresh, Place)
        assert cluster.place(chance.choice([0, 0, 0, 0, 1]), prefers=by.prefers).order == fresh.order[:FEW]


def test_requests_that_come_before_the_board_has_answered_go_to_different_nodes():
    cluster = Cluster([a_node(n) for n in range(20)])
    seen = []
    for _ in range(20):
        decision = cluster.decide()
        assert isinstance(decision, Place)
        cluster.spreading.take("m", decision.order)
        seen.append(decision.order[0].node)
    assert sorted(seen) == [c.node for c in cluster.nodes]


def test_with_few_nodes_one_that_fills_up_brings_the_others_near():
    cluster = Cluster([a_node(0, slots=2), *(a_node(n, slots=4) for n in range(1, 5))])
    for n in range(1, 5):
        cluster.add(f"n{n:03}", 2)
    assert [s.in_turn for s in cluster.place(0).order] == [True] + [False] * 4
    assert [s.in_turn for s in cluster.place(0).order] == [True] * 5


def test_a_thousand_nodes_share_by_weight():
    cluster = Cluster([a_node(n, slots=64, weight=2.0 if n % 4 == 0 else 1.0) for n in range(1000)])
    for _ in range(5000):
        cluster.place(0)
    loads = [cluster.in_flight.get(f"n{n:03}/m", 0) for n in range(1000)]
    heavy, light = loads[::4], [load for n, load in enumerate(loads) if n % 4]
    assert (min(heavy), max(heavy), min(light), max(light)) == (8, 8, 4, 4)
    assert cluster.asked == 1  # and nothing was looked up a second time


def test_requests_of_another_kind_meet_other_nodes():
    cluster = Cluster([a_node(0, max_model_len=2048), a_node(1, max_model_len=8192), a_node(2)])
    assert [s.node for s in cluster.place(0, tokens=100).order] == ["n000", "n001", "n002"]
    long = cluster.place(0, tokens=3000)
    assert ([s.node for s in long.order], long.barred) == (["n001", "n002"], {"n000"})
    assert [s.node for s in cluster.place(0, only=frozenset({"n002"})).order] == ["n002"]
    assert [s.node for s in cluster.place(0, tried={"n000", "n001"}).order] == ["n002"]
    assert cluster.decide(tried={"n000", "n001", "n002"}) == Refuse(Why.ALL_TRIED)


def test_who_may_not_go_everywhere_is_not_sent_where_others_went_before():
    """One after the other, since each kind's standing is kept for the next."""
    cluster = Cluster([a_node(n) for n in range(3)])
    found = [
        {s.node for s in cluster.place(0, only=only).order}
        for only in (None, frozenset({"n001"}), frozenset({"n002"}), None)
    ]
    everywhere = {"n000", "n001", "n002"}
    assert found == [everywhere, {"n001"}, {"n002"}, everywhere]


def test_what_one_kind_takes_the_others_see():
    cluster = Cluster([a_node(0, slots=1), a_node(1, slots=1)])
    assert cluster.place(0).order[0].node == "n000"
    assert cluster.place(0, tried={"n009"}).order[0].node == "n001"
    assert [s.free for s in cluster.place(0).order] == [0.0, 0.0]


@pytest.mark.parametrize("count", [3, 300])
def test_nothing_piles_up_while_nobody_looks(count):
    cluster = Cluster([a_node(n, slots=10**6) for n in range(count)])
    for _ in range(25_000):
        cluster.add("n001", 1)
        cluster.standings.touch("m", "n002")
    cluster.decide()
    assert cluster.place(0).order[0].node == "n000"
    for _ in range(12_000):
        cluster.add("n001", 1)
        cluster.decide()
    assert len(cluster.standings._touched.get("m", ())) <= 10_000
