"""How far a host is that joins, in words; and the wheel that it installs."""

from __future__ import annotations

import datetime
import hashlib
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest
from django.utils import timezone

from nodes import agent_wheel, joining
from nodes.joining import DONE, FAILED, NOW, WAITING
from nodes.models import EnrolmentToken, Node, NodeModel, NodeState
from tests.nodes.agents import enrol, gpu, model
from worker_agent.contract import ModelState, lease_key

MOMENT = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)

pytestmark = pytest.mark.django_db


def states(node: Node, connected: bool | None = True) -> list[str]:
    return [step.state for step in joining.steps(node, list(node.models.all()), connected)]


@pytest.mark.parametrize(
    ("changes", "last", "words"),
    [
        ({"state": ModelState.READY}, DONE, "m answers"),
        ({"state": ModelState.LOADING, "progress": 0.5}, NOW, "being loaded"),
        ({"state": ModelState.DOWNLOADING}, NOW, "downloaded"),
        ({"state": ModelState.OFFERED}, WAITING, "first request"),
        ({"state": ModelState.FAILED, "reason": "no such file"}, FAILED, "no such file"),
        ({"state": ModelState.OFFERED, "fits": False, "reason": "too big"}, FAILED, "too big"),
    ],
)
def test_the_first_model_is_the_last_step(changes, last, words):
    node, _ = enrol(models=[model(**changes)])
    assert states(node) == [DONE, DONE, DONE, last]
    step = joining.steps(node, list(node.models.all()), True)[-1]
    assert words in step.words
    assert (step.progress == 0.5) == ("progress" in changes)


def test_a_model_that_answers_outweighs_others_that_do_not():
    node, _ = enrol(models=[model("a", ModelState.FAILED), model("b", ModelState.READY)])
    assert states(node)[-1] == DONE


def test_gpus_of_one_kind_are_counted():
    node, _ = enrol(gpus=[gpu(index=n, uuid=f"u{n}", name="L40S") for n in range(4)])
    assert joining.steps(node, [], True)[0].words.endswith(", 4 x L40S")


def test_a_node_that_waits_for_approval_cannot_reach_redis_or_is_gone_is_not_done():
    node, _ = enrol(needs_approval=True)
    assert states(node) == [DONE, NOW, DONE, DONE]
    node, _ = enrol(name="two")
    assert states(node, connected=False) == [DONE, DONE, NOW, DONE]
    assert states(node, connected=None) == [DONE, DONE, NOW, DONE]
    assert joining.steps(node, [], False, silent=True)[2].state == FAILED
    assert joining.steps(node, [], True, silent=True)[2].state == DONE  # the lease is the newer sign
    node.state = NodeState.GONE
    assert states(node) == [DONE, DONE, FAILED, WAITING]
    node.state = NodeState.REVOKED
    assert states(node) == [DONE, FAILED]


def test_the_report_reads_leases_and_does_not_grow_with_nodes(wire, django_assert_num_queries):
    node, _ = enrol()
    token = EnrolmentToken.objects.get()
    assert not joining.report(token)["nodes"][0]["ready"]
    wire.set(lease_key(node.pk), "1")
    assert joining.report(token)["nodes"][0]["ready"]
    wire.delete(lease_key(node.pk))
    Node.objects.filter(pk=node.pk).update(last_beat_at=timezone.now() - datetime.timedelta(hours=1))
    assert joining.report(token)["nodes"][0]["steps"][2].state == FAILED
    for number in range(3):
        other, _ = enrol(name=f"n{number}")
        Node.objects.filter(pk=other.pk).update(token=token)
    with django_assert_num_queries(3):
        assert len(joining.report(token)["nodes"]) == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "valid"),
        ({"uses": 9}, "valid"),  # as often as one likes
        ({"max_uses": 2, "uses": 1}, "valid"),
        ({"max_uses": 2, "uses": 2}, "used up"),
        ({"expires_at": MOMENT + datetime.timedelta(seconds=1)}, "valid"),
        ({"expires_at": MOMENT}, "expired"),
        ({"revoked_at": MOMENT, "max_uses": 1, "uses": 1}, "revoked"),
    ],
)
def test_what_a_token_is_good_for_is_said(fields, said, monkeypatch):
    monkeypatch.setattr(timezone, "now", lambda: MOMENT)
    token = EnrolmentToken(**{"max_uses": None, "uses": 0, "expires_at": None, **fields})
    assert token.state == said


def test_only_a_token_that_there_is_can_be_noted_as_fetched(wire):
    enrol()
    token = EnrolmentToken.objects.get()
    joining.fetched(token.pk + 1)
    assert not wire.keys("gt:join:*")
    joining.fetched(token.pk)
    assert joining.report(token)["fetched_at"] is not None
    assert 0 < wire.ttl(f"gt:join:{token.pk}") <= 86400
    assert NodeModel.objects.count() == 1


def test_the_wheel_is_the_same_bytes_each_time_and_served_by_its_own_name(client):
    first = agent_wheel.wheel()
    agent_wheel.wheel.cache_clear()
    assert agent_wheel.wheel() == first
    answer = client.get(f"/agent/{first.filename}")
    assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, first.sha256)
    assert client.get("/agent/other-1-py3-none-any.whl").status_code == 404
    assert client.post(f"/agent/{first.filename}").status_code == 405


def test_what_is_in_the_wheel_runs_and_nothing_else_is_in_it(tmp_path):
    archive = zipfile.ZipFile(BytesIO(agent_wheel.wheel().content))
    names = archive.namelist()
    assert {each.date_time for each in archive.infolist()} == {(2026, 1, 1, 0, 0, 0)}  # not when it was made
    assert {name.split("/")[0].split("-")[0] for name in names} == {"worker_agent", "gputorrent_agent"}
    metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "Requires-Dist: msgspec" in metadata
    assert 'Requires-Dist: vllm==0.32.0 ; extra == "engine"' in metadata
    archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "worker_agent", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "worker_agent 0.1.0" in done.stdout
