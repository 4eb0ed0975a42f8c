"""A node's life with the coordinator: approval, drain, silence, revocation, restarts, copies."""

from __future__ import annotations

import os
import shutil
import signal
import time

from tests.journeys.cluster import MODEL, Cluster
from tests.journeys.test_faults import stream


def state(cluster: Cluster, name: str) -> str:
    worker = cluster.workers().get(name)
    return worker["state"] if worker else "unknown"


def test_a_node_that_needs_approval_works_only_after_it(bare: Cluster):
    bare.token = bare.manage("enrolment_token", "--approval").strip()
    agent = bare.start_agent("one")
    bare.until(lambda: state(bare, "one") == "pending", "it is enrolled", 20, agent)
    bare.until(
        lambda: bare.workers()["one"]["models"][0]["state"] == "ready", "its model is ready", 20, agent
    )
    refused = bare.chat("too early", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_workers"
    bare.manage("node", "approve", "one")
    bare.until(lambda: bare.chat("now", max_tokens=1).status_code == 200, "it works", 10)


def test_a_token_is_good_for_its_uses_only(bare: Cluster):
    bare.token = bare.manage("enrolment_token", "--uses", "1").strip()
    bare.agent_ready("one")
    second = bare.start_agent("two")
    bare.until(lambda: not second.alive, "the second gives up", 20)
    assert second.exit_status != 0
    assert "used up" in second.output()
    assert "Traceback" not in second.output()


def test_a_drained_node_finishes_and_takes_nothing_new_until_it_is_resumed(bare: Cluster):
    bare.agent_ready("one", "--per-second", "10")
    with stream(bare, "let me finish", 20) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        bare.manage("node", "drain", "one")
        assert state(bare, "one") == "draining"
        assert bare.chat("no room", max_tokens=1).json()["error"]["code"] == "no_workers"
        assert [first, *lines][-2] == "data: [DONE]"
    bare.until(lambda: bare.workers()["one"]["in_flight"] == 0, "it is idle", 5)
    answer = bare.post("/workers/one/resume", {})
    assert answer.json()["changed"] is True
    bare.until(lambda: bare.chat("again", max_tokens=1).status_code == 200, "it works again", 10)


def test_a_drained_node_stays_drained_over_a_restart(bare: Cluster):
    agent = bare.agent_ready("one")
    bare.manage("node", "drain", "one")
    agent.stop()
    bare.until(lambda: state(bare, "one") == "gone", "it said goodbye", 10)
    again = bare.start_agent("one")
    bare.until(lambda: state(bare, "one") == "draining", "it is back, and drained", 20, again)
    bare.until(
        lambda: bare.workers()["one"]["models"][0]["state"] == "ready", "its model is ready", 20, again
    )
    assert bare.chat("no", max_tokens=1).status_code == 503


def test_a_silent_node_is_unhealthy_and_well_again_with_its_next_beat(bare: Cluster):
    agent = bare.agent_ready("one")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        bare.until(lambda: state(bare, "one") == "unhealthy", "its silence is noticed", 20)
        assert bare.chat("anyone?", max_tokens=1).json()["error"]["code"] == "no_workers"
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    bare.until(lambda: state(bare, "one") == "online", "it is back", 10, agent)
    bare.until(lambda: bare.chat("hello", max_tokens=1).status_code == 200, "it serves", 10)


def test_a_paused_coordinator_declares_nobody_dead(bare: Cluster):
    bare.agent_ready("one")
    web = bare.web[0]
    os.kill(web.pid, signal.SIGSTOP)
    time.sleep(2 * float(bare.env["GPUTORRENT_UNHEALTHY_AFTER_SECONDS"]))
    os.kill(web.pid, signal.SIGCONT)
    assert state(bare, "one") == "online"
    assert bare.chat("slept well", max_tokens=1).status_code == 200
    assert "unhealthy" not in bare.jobworker.output()


def test_a_revoked_node_is_cut_off_at_once(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "5")
    with stream(bare, "cut me off", 200) as answer:
        lines = answer.iter_lines()
        next(lines)
        bare.manage("node", "revoke", "one")
        # Its Redis connections are cut with its user, so not one more token comes.
        rest = [line for line in lines if line.startswith("data: ")]
    assert "error" in rest[-1]
    bare.until(lambda: not agent.alive, "the agent has stopped", 20)
    assert agent.exit_status != 0
    assert "revoked" in agent.output()
    assert bare.processes("one") == []
    again = bare.start_agent("one")
    bare.until(lambda: not again.alive, "it is not let in again", 20)
    assert "revoked" in again.output()


def test_a_restarted_agent_is_the_same_node(bare: Cluster):
    agent = bare.agent_ready("one")
    before = bare.workers()["one"]
    agent.kill()
    bare.token = ""  # the credentials it keeps are enough
    bare.agent_ready("one")
    bare.until(
        lambda: bare.workers()["one"]["incarnation"] == before["incarnation"] + 1, "a new incarnation", 10
    )
    assert bare.workers()["one"]["id"] == before["id"]
    assert list(bare.workers()) == ["one"]


def test_copied_credentials_are_refused_while_the_first_agent_lives(bare: Cluster):
    agent = bare.agent_ready("one")
    shutil.copytree(bare.folder / "state-one", bare.folder / "state-copy")
    copy = bare.start_agent("copy", arguments=("--name", "one"))
    bare.until(lambda: not copy.alive, "the copy gives up", 30)
    assert copy.exit_status != 0
    assert "another agent" in copy.output()
    assert agent.alive
    assert bare.chat("still me", max_tokens=1).status_code == 200


def test_the_figures_of_beats_are_kept_as_samples(bare: Cluster):
    bare.agent_ready("one")
    bare.chat("some work", max_tokens=20)
    time.sleep(1)
    counted = bare.manage(
        "shell", "-v", "0", "-c",
        "from nodes.models import NodeSample as S; print(S.objects.count(), S.objects.filter(keep=1).count()"
        ", max(S.objects.values_list('tokens_per_s', flat=True)) > 0)",
    )  # fmt: skip
    samples, kept, moved = counted.split()
    assert int(samples) >= 2
    assert kept == "1"
    assert moved == "True"


def test_a_model_nobody_offers_is_refused(bare: Cluster):
    bare.agent_ready("one")
    assert (
        bare.post("/workers/one/models/load", {"model": "nope"}).json()["error"]["code"]
        == "model_not_offered"
    )
    assert bare.post("/workers/nope/drain", {}).json()["error"]["code"] == "node_not_found"
    assert bare.post("/workers/one/models/load", {"modell": MODEL}).status_code == 400
