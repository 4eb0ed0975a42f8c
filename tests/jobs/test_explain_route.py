from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command

from tests.jobs.scripted import ScriptedNode
from worker_agent.contract import ModelState

A, B, C, D = (letter * 16 for letter in "abcd")


def explain(*arguments: str) -> str:
    out = io.StringIO()
    call_command("explain_route", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def nodes(wire):
    found = [
        ScriptedNode(wire, A, slots=4, max_model_len=4096, ttft_ms=20.0),
        ScriptedNode(wire, B, slots=4, max_model_len=8192, labels={"weight": "3"}),
        ScriptedNode(wire, C, slots=4, state=ModelState.SLEEPING),
        ScriptedNode(wire, D, slots=4),
    ]
    found[3].die()
    return found


def test_every_node_is_listed_with_its_factors_and_the_reason_it_is_not_asked(nodes):
    head, columns, *rows = explain("--model", "m").splitlines()
    assert head.startswith("m: placed at once; 2 nodes take turns")
    assert columns.split()[:4] == ["rank", "node", "state", "model"]
    assert [row.split()[:2] for row in rows] == [
        ["1", "node-bbbb"], ["2", "node-aaaa"], ["-", "node-cccc"], ["-", "node-dddd"]
    ]  # fmt: skip
    assert "label" in rows[0]
    assert "sleeping; others have it loaded" in rows[2]
    assert "online, silent" in rows[3]
    assert rows[3].endswith("takes no work")


def test_for_programs_it_is_json(nodes):
    told = json.loads(explain("--model", "m", "--json"))
    first, second, *_ = told["nodes"]
    assert (first["rank"], first["weight"], first["weight_from"], first["in_flight"]) == (1, 3.0, "label", 0)
    assert first["share"] == pytest.approx(3 / 3.1, abs=1e-3)
    assert (second["free"], second["latency"], second["score"]) == (1.0, 1.0, 0.1)


def test_a_context_that_is_too_small_is_named(nodes):
    told = json.loads(explain("--model", "m", "--tokens", "5000", "--json"))
    by_name = {n["node"]: n for n in told["nodes"]}
    assert by_name["node-bbbb"]["rank"] == 1
    assert by_name["node-aaaa"]["note"] == "context 4096 is less than 5000"


def test_a_model_that_would_be_loaded_says_where(wire):
    ScriptedNode(wire, C, state=ModelState.OFFERED)
    assert "waits for a node to load the model" in (said := explain("--model", "m"))
    assert "would be asked to load it" in said


def test_an_unknown_model_is_an_error_that_names_the_known_ones(nodes):
    with pytest.raises(CommandError, match=r"'no-such'. Known models: m"):
        explain("--model", "no-such")


def test_no_nodes_at_all(wire):
    with pytest.raises(CommandError, match="none; are there nodes"):
        explain("--model", "m")


def test_redis_away_is_an_error(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    with pytest.raises(CommandError, match="Redis is away"):
        explain("--model", "m")
