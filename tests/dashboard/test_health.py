"""The line on top: is the cluster well, and if not, what is to be done."""

from __future__ import annotations

import pytest

from dashboard.health import Parts, findings, headline, node_level
from dashboard.state import Level, Shown, Totals
from tests.dashboard.made import gpu, line, model, node


def says(nodes=(), models=(), totals=None, parts=None) -> str:
    found = findings(parts or Parts(), list(nodes), list(models), totals or Totals())
    return headline(found, list(nodes), sum(bool(m.nodes_ready) for m in models)).text


def test_all_is_well():
    nodes = [node("a", models=[line()]), node("b")]
    assert says(nodes, [model()]) == "All is well: 2 nodes online, 1 model ready."
    assert findings(Parts(), nodes, [model()], Totals()) == []


def test_without_nodes_or_models_that_is_said():
    assert says() == "No GPU host has joined yet."
    assert says([node()]) == "1 node is online, no model is ready yet."


def test_the_first_line_of_an_empty_cluster_leads_on():
    first = headline([], [], 0)
    assert (first.page, first.link) == ("join", "Join a host")
    assert first.advice


def test_what_is_to_be_looked_at_is_shown_alone_where_the_line_leads():
    nodes = [node("a", state=Shown.PENDING), node("b", models=[line(state="failed")])]
    found = findings(Parts(), nodes, [model()], Totals(requests=9, errors=9))
    assert {(f.page, f.query) for f in found} == {
        ("admin:nodes_node_changelist", "?state__exact=pending"),
        ("admin:nodes_nodemodel_changelist", "?state__exact=failed"),
        ("admin:jobs_job_changelist", "?state__exact=failed"),
    }


def test_silent_nodes_are_named_and_many_counted():
    two = [node("lab-a", state=Shown.SILENT), node("lab-b", state=Shown.UNHEALTHY), node("c")]
    assert says(two, [model()]) == "2 nodes do not answer: lab-a, lab-b."
    many = [node(f"n{i}", state=Shown.SILENT) for i in range(8)]
    assert says(many) == "8 nodes do not answer: n0, n1, n2, n3, n4 and 3 more."


def test_a_node_that_has_left_is_no_fault_but_none_left_is():
    assert (
        says([node("a"), node("b", state=Shown.GONE)], [model()])
        == "All is well: 1 node online, 1 model ready."
    )
    assert says([node("b", state=Shown.GONE)]) == "All nodes have left."


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (Parts(redis=False, jobworker=None), "Redis does not answer."),
        (Parts(database=False), "The database does not answer."),
        (Parts(jobworker=False), "No jobworker runs."),
    ],
)
def test_what_is_away_comes_before_what_nodes_have(parts, said):
    nodes = [node(models=[line(state="failed")])]
    assert says(nodes, [model()], parts=parts) == said
    bad = [f.text for f in findings(parts, nodes, [model()], Totals()) if f.level == Level.BAD]
    assert bad == [said]  # without Redis nobody knows whether a jobworker runs


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (node(state=Shown.PENDING), "1 node waits for approval: lab-a."),
        (node(models=[line(breaker="open")]), "1 breaker is open: m on lab-a."),
        (node(models=[line(state="failed")]), "1 model could not be loaded: m on lab-a."),
        (node(gpus=[gpu(temperature=90)]), "1 node has a GPU at 90 °C or more: lab-a."),
        (node(disk_free=2**30), "1 node has less than 5 GiB of disk left: lab-a."),
    ],
)
def test_what_a_node_has_is_said_and_ranks_its_card(card, said):
    assert said in [f.text for f in findings(Parts(), [card, node("b")], [model()], Totals())]
    hottest = max((g.temperature for g in card.gpus), default=None)
    assert node_level(card.state, card.models, hottest, card.disk_free) == Level.WARN


@pytest.mark.parametrize(
    ("state", "models", "level"),
    [
        (Shown.ONLINE, [line()], Level.FINE),
        (Shown.ONLINE, [line(state="downloading")], Level.NOTE),
        (Shown.DRAINING, [line()], Level.NOTE),
        (Shown.SILENT, [line()], Level.BAD),
        (Shown.GONE, [line(state="failed")], Level.FINE),
    ],
)
def test_a_card_ranks_by_its_worst_and_one_that_has_left_by_nothing(state, models, level):
    """Its disk is not measured, which is no full one."""
    assert node_level(state, models, None, 0) == level


def test_a_half_open_breaker_and_a_drain_are_no_alarm():
    nodes = [node(models=[line(breaker="half_open")]), node("b", state=Shown.DRAINING)]
    assert says(nodes, [model()]).startswith("All is well")


def test_a_queue_is_told_by_what_would_shorten_it():
    assert says([node()], [model(waiting=3, slots=4)]).startswith("All is well")
    assert says([node()], [model(waiting=9, slots=4)]) == "9 requests wait for m: all 4 slots are taken."
    none = model(waiting=1, nodes_ready=0, slots=0)
    assert says([node()], [none]) == "1 request waits for m, which no node has ready."


def test_a_few_errors_are_no_alarm_and_many_are():
    assert says([node()], [model()], Totals(requests=100, errors=4)).startswith("All is well")
    assert says([node()], [model()], Totals(requests=4, errors=4)).startswith("All is well")
    assert says([node()], [model()], Totals(requests=1000, errors=30)).startswith("All is well")
    assert "30 of 100 requests" in says([node()], [model()], Totals(requests=100, errors=30))


def test_every_fault_comes_with_advice():
    nodes = [
        node("a", state=Shown.SILENT),
        node("b", state=Shown.PENDING),
        node("c", models=[line(breaker="open")]),
    ]
    found = findings(Parts(False, False, False), nodes, [model(waiting=9)], Totals(requests=9, errors=9))
    assert len(found) == 8
    assert [f.level for f in found] == sorted((f.level for f in found), reverse=True)
    assert all(f.advice for f in found)
