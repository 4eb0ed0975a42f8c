"""The state as HTML, and what of it a page must be told."""

from __future__ import annotations

import pytest

from dashboard.rendering import Rendered, Renderer, changes
from dashboard.selecting import View
from dashboard.state import Event, Finding, JobLine, Level, Shown, State, Totals
from tests.dashboard.made import gpu, line, model, node

EVIL = '<img src=x onerror="alert(1)">'


def state(**changed) -> State:
    fields = {
        "at": 1.0,
        "totals": Totals(),
        "models": [],
        "nodes": [],
        "jobs": [],
        "running": 0,
        "waiting": 0,
        "events": [],
        "findings": [],
        "keys": 1,
        "ever_asked": True,
    }
    return State(**{**fields, **changed})


@pytest.fixture
def renderer():
    return Renderer()


def test_nothing_that_others_named_is_html(renderer):
    job = JobLine("0" * 32, EVIL, EVIL, "a" * 16, EVIL, "running", "stream", 1.0, 3)
    whole = state(
        models=[model(name=EVIL)],
        nodes=[
            node(
                EVIL,
                reason=EVIL,
                level=Level.BAD,
                gpus=[gpu(name=EVIL)],
                models=[line(name=EVIL, state="failed", reason=EVIL), line(name=EVIL, state="loading")],
            )
        ],
        jobs=[job],
        events=[Event(1.0, Level.WARN, EVIL, EVIL, "node", "a" * 16)],
        findings=[Finding(Level.BAD, EVIL, EVIL), Finding(Level.BAD, EVIL + "2", EVIL)],
    )
    view = View(q=EVIL)
    drawn = renderer.render(whole, [View(), view])[View()]
    pieces = [*drawn.parts.values(), *drawn.cards.values()]
    assert not [piece for piece in pieces if "<img" in piece]
    assert sum(piece.count("&lt;img") for piece in pieces) >= 12
    assert [name for name, html in drawn.parts.items() if "&lt;img" in html] == [
        *("health", "models", "jobs", "events"),
    ]


def test_only_what_changed_is_drawn_and_told(renderer):
    nodes = [node("a"), node("b")]
    first = renderer.render(state(nodes=nodes), [View()])[View()]
    assert set(changes(Rendered(), first)) == {"at", "parts", "cards", "order"}
    drawn = renderer.drawn
    same = renderer.render(state(nodes=nodes, at=2.0), [View()])[View()]
    assert renderer.drawn == drawn + 1  # the listing, which belongs to a view
    assert changes(first, same) == {"at": 2.0}
    later = renderer.render(state(nodes=[node("a"), node("b", cpu=99)], at=3.0), [View()])[View()]
    told = changes(same, later)
    assert set(told) == {"at", "cards"}
    assert set(told["cards"]) == {nodes[1].id}
    assert "99 %" in told["cards"][nodes[1].id]


def test_a_node_that_falls_silent_moves_to_the_front(renderer):
    before = renderer.render(state(nodes=[node("a"), node("b")]), [View()])[View()]
    fallen = node("b", state=Shown.SILENT, level=Level.BAD)
    told = changes(before, renderer.render(state(nodes=[node("a"), fallen]), [View()])[View()])
    assert told["order"] == [fallen.id, node("a").id]
    assert "does not answer" in told["cards"][fallen.id]


def test_a_page_that_missed_some_is_told_the_sum(renderer):
    first = renderer.render(state(nodes=[node("a")]), [View()])[View()]
    renderer.render(state(nodes=[node("a", cpu=50)], running=1), [View()])
    now = renderer.render(state(nodes=[node("a", cpu=60)], running=2), [View()])[View()]
    told = changes(first, now)
    assert set(told["parts"]) == {"figures"}
    assert "60 %" in told["cards"][node("a").id]


def test_what_to_do_next_is_said_where_nothing_is_yet(renderer):
    drawn = renderer.render(state(keys=0, ever_asked=False), [View()])[View()]
    assert "/admin/join/" in drawn.parts["listing"]
    assert "Make an API key" in drawn.parts["jobs"]
    assert "curl" in drawn.parts["jobs"]
    assert "/admin/join/" in drawn.parts["health"]
    with_a_key = renderer.render(state(keys=1, ever_asked=False), [View()])[View()]
    assert "Then" not in with_a_key.parts["jobs"]
    asked = renderer.render(state(keys=1), [View()])[View()]
    assert "Nothing runs and nothing waits" in asked.parts["jobs"]


def test_models_that_are_left_out_are_counted(renderer):
    shown = [model(name=f"m{n}") for n in range(2)]
    few = renderer.render(state(models=shown, models_known=2, models_ready=2), [View()])[View()]
    assert "are shown" not in few.parts["models"]
    many = state(models=shown, nodes=[node("a")], models_known=50, models_ready=41)
    parts = renderer.render(many, [View()])[View()].parts
    assert "2 of 50 models are shown" in parts["models"]
    assert "41 models ready" in parts["health"]


def test_a_model_being_loaded_shows_how_far_it_is(renderer):
    loading = node(models=[line(state="loading", progress=40)])
    html = next(iter(renderer.render(state(nodes=[loading]), [View()])[View()].cards.values()))
    assert 'value="40"' in html
    assert "loading 40 %" in html
