"""The agent as a process, between a stand-in coordinator, a real Redis and a fake engine."""

from __future__ import annotations

import json
import signal
import stat

import pytest

from tests.fake_vllm import write_wrapper
from tests.worker_agent.stand_in import WebProcess, work
from worker_agent import contract
from worker_agent.contract import (
    Cancel,
    Done,
    Drain,
    Failed,
    Load,
    Outcome,
    RedisAccess,
    Refused,
    Resume,
    Unload,
)


def test_it_registers_serves_and_says_goodbye(start_agent, coordinator, web, tmp_path):
    agent = start_agent(coordinator.url, "m", options=("--label", "rack=7", "--name", "box"))
    coordinator.wait_ready("m")
    (registered,) = coordinator.registers
    assert registered.name == "box"
    assert registered.labels == {"rack": "7"}
    assert registered.host.cpu_count >= 1
    assert [model.name for model in registered.models] == ["m"]
    report = coordinator.beats[-1].models[0]
    assert (report.max_model_len, report.slots) == (2048, 64)
    assert report.engine.startswith("vllm")

    streamed, whole = work(hide_usage=True), work(stream=False, prompt="one two")
    web.deliver(coordinator.node, streamed)
    web.deliver(coordinator.node, whole)
    first, second = web.wait(streamed, whole)
    assert web.text(streamed) == "red green blue red green blue"
    assert first.usage.completion_tokens == 6
    assert b'"usage"' not in first.body
    assert json.loads(second.body)["choices"][0]["message"]["content"] == "one two one two one two"

    agent.tree()
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert agent.survivors() == []
    assert len(coordinator.goodbyes) == 1
    secret = coordinator.secrets[coordinator.node]
    for path in [agent.output_path, *tmp_path.glob("state/*/logs/*")]:
        text = path.read_text()
        assert secret not in text
        assert "the-enrolment-token" not in text
        assert "red green" not in text
    (credentials,) = tmp_path.glob("state/*/credentials.json")
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600


def test_many_requests_run_at_once_and_each_gets_its_own_answer(start_agent, coordinator, web):
    start_agent(coordinator.url, "m", knobs=("--per-second", "20"))
    coordinator.wait_ready("m")
    items = [work(prompt=f"w{i} x{i}", tokens=40) for i in range(50)]
    for item in items:
        web.deliver(coordinator.node, item)
    coordinator.wait_for(lambda: any(beat.models[0].running > 10 for beat in coordinator.beats))
    assert any(len(beat.attempts) > 10 for beat in coordinator.beats)
    assert all(isinstance(last, Done) for last in web.wait(*items))
    for i, item in enumerate(items):
        assert web.text(item) == " ".join([f"w{i} x{i}"] * 20)
        assert [it.seq for it in web.of(item)] == list(range(len(web.of(item))))
    coordinator.wait_for(lambda: not coordinator.beats[-1].attempts)
    assert any(beat.models[0].tokens_per_s > 0 and beat.models[0].ttft_ms > 0 for beat in coordinator.beats)


def test_a_restart_keeps_the_identity_and_a_lost_ledger_is_enrolled_into_again(start_agent, coordinator):
    agent = start_agent(coordinator.url)
    coordinator.wait_ready("m")
    agent.signal()
    agent.wait()
    agent = start_agent(coordinator.url)
    coordinator.wait_for(lambda: len(coordinator.registers) == 2)
    assert coordinator.registers[1].node == coordinator.node
    assert coordinator.registers[1].token == ""
    assert coordinator.registers[0].machine == coordinator.registers[1].machine
    assert coordinator.registers[0].instance != coordinator.registers[1].instance
    coordinator.wait_ready("m")
    coordinator.secrets.clear()  # while it runs: the next beat is unknown
    coordinator.wait_for(lambda: coordinator.secrets)
    coordinator.wait_for(lambda: coordinator.beats[-1].incarnation == coordinator.incarnation)
    assert agent.process.poll() is None


def test_two_agents_on_one_host_are_two_nodes(start_agent, coordinator, web):
    start_agent(coordinator.url)
    coordinator.wait_ready("m")
    first = coordinator.node
    start_agent(coordinator.url)
    coordinator.wait_for(lambda: len(coordinator.secrets) == 2)
    coordinator.wait_for(lambda: len(coordinator.beats) > 3 and coordinator.beats[-1].incarnation)
    names = [message.name for message in coordinator.registers]
    assert names[1] == names[0] + "-2"
    items = [work(), work()]
    coordinator.wait_for(lambda: all(_last_beat(coordinator, i) == "ready" for i in (1, 2)))
    web.deliver(first, items[0])
    web.deliver(coordinator.node, items[1])
    assert all(isinstance(last, Done) for last in web.wait(*items))


def _last_beat(coordinator, incarnation):
    mine = [beat for beat in coordinator.beats if beat.incarnation == incarnation]
    return mine[-1].models[0].state if mine else None


def test_sigterm_lets_running_work_end_and_takes_no_more(start_agent, coordinator, web):
    agent = start_agent(coordinator.url, "m", knobs=("--per-second", "20"))
    coordinator.wait_ready("m")
    running, late = work(tokens=30), work()
    web.deliver(coordinator.node, running)
    web.wait_chunk(running)
    agent.signal()
    coordinator.wait_for(lambda: coordinator.beats[-1].draining)
    web.deliver(coordinator.node, late)
    first, second = web.wait(running, late)
    assert isinstance(first, Done)
    assert isinstance(second, Failed)
    assert second.outcome is Outcome.DRAINING
    assert agent.wait() == 0


def test_after_the_grace_running_work_is_handed_back(start_agent, coordinator, web):
    agent = start_agent(coordinator.url, knobs=("--per-second", "20"), options=("--grace-seconds", "0.5"))
    coordinator.wait_ready("m")
    item = work(tokens=1000)
    web.deliver(coordinator.node, item)
    web.wait_chunk(item)
    agent.signal()
    (last,) = web.wait(item)
    assert isinstance(last, Failed)
    assert last.outcome is Outcome.DRAINING
    assert agent.wait() == 0


def test_a_second_signal_ends_it_at_once(start_agent, coordinator, web):
    agent = start_agent(
        coordinator.url, knobs=("--per-second", "20", "--children"), options=("--grace-seconds", "600")
    )
    coordinator.wait_ready("m")
    item = work(tokens=1000)
    web.deliver(coordinator.node, item)
    web.wait_chunk(item)
    agent.tree()
    agent.signal()
    coordinator.wait_for(lambda: coordinator.beats[-1].draining)
    agent.signal()
    assert agent.wait() == 0
    assert agent.survivors() == []


def test_sigkill_of_the_agent_leaves_no_process(start_agent, coordinator):
    agent = start_agent(coordinator.url, knobs=("--children",))
    coordinator.wait_ready("m")
    coordinator.wait_for(lambda: len(agent.tree()) >= 4)  # reaper, engine, worker, worker's worker
    agent.process.kill()
    agent.wait()
    agent.wait_no_survivors()


def test_sigkill_while_the_engine_loads_leaves_no_process(start_agent, coordinator):
    agent = start_agent(coordinator.url, knobs=("--children", "--load-seconds", "60"))
    coordinator.wait_for(lambda: len(agent.tree()) >= 4)
    agent.process.kill()
    agent.wait()
    agent.wait_no_survivors()


def test_an_engine_that_crashes_fails_its_work_and_comes_back(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--die-after-tokens", "8", "--per-second", "50"))
    coordinator.wait_ready("m")
    items = [work(tokens=100), work(tokens=100)]
    for item in items:
        web.deliver(coordinator.node, item)
    for last in web.wait(*items):
        assert isinstance(last, Failed)
        assert last.outcome is Outcome.ENGINE_DIED
    coordinator.wait_for(lambda: coordinator.states()["m"] == "loading")
    assert "exit status" in coordinator.beats[-1].models[0].reason
    coordinator.wait_ready("m")
    after = work(tokens=2)
    web.deliver(coordinator.node, after)
    (last,) = web.wait(after)
    assert isinstance(last, Done)


def test_work_for_a_model_that_is_not_ready_is_refused(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--load-seconds", "60"))
    coordinator.wait_for(lambda: coordinator.states().get("m") == "loading")
    items = [work(), work(model="other")]
    for item in items:
        web.deliver(coordinator.node, item)
    assert {last.outcome for last in web.wait(*items)} == {Outcome.MODEL_NOT_READY}


def test_a_model_that_does_not_load_ends_the_agent_with_the_reason(start_agent, coordinator):
    agent = start_agent(coordinator.url, knobs=("--fail-load", "no such architecture"))
    assert agent.wait() == 1
    assert "no such architecture" in agent.output.splitlines()[-1]
    assert "Traceback" not in agent.output
    assert coordinator.states() == {"m": "failed"}
    assert "no such architecture" in coordinator.beats[-1].models[0].reason
    assert len(coordinator.goodbyes) == 1


def test_models_of_which_none_can_ever_fit_end_it_with_the_reason(start_agent, coordinator):
    agent = start_agent(coordinator.url, options=("--need", "m=100TiB"))
    assert agent.wait() == 1
    assert "needs 102400.0 GiB, this node gives" in agent.output.splitlines()[-1]


def test_a_download_is_told_apart_from_a_load(start_agent, coordinator, tmp_path):
    blobs = tmp_path / "hub" / "models--Org--M" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x" * 100)
    env = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    start_agent(coordinator.url, "m=Org/M", knobs=("--load-seconds", "60"), env=env)
    coordinator.wait_for(lambda: coordinator.states().get("m") == "downloading")
    (blobs / "abc.incomplete").rename(blobs / "abc")
    coordinator.wait_for(lambda: coordinator.states().get("m") == "loading")


def test_pins_come_with_every_beat_and_by_control(start_agent, coordinator, web):
    start_agent(coordinator.url)
    coordinator.wait_ready("m")
    assert not coordinator.beats[-1].models[0].pinned
    coordinator.pinned = ["m"]
    coordinator.wait_for(lambda: coordinator.beats[-1].models[0].pinned)
    coordinator.pinned = []
    coordinator.wait_for(lambda: not coordinator.beats[-1].models[0].pinned)


def test_what_it_carries_is_told(start_agent, coordinator):
    start_agent(
        coordinator.url, "m", options=("--offer", "later", "--need", "m=1GiB", "--need", "later=2GiB")
    )
    coordinator.wait_ready("m")
    beat = coordinator.beats[-1]
    assert beat.memory_used == 1 << 30 < beat.memory_budget
    assert [(it.name, it.state.value, it.need, it.fits) for it in coordinator.registers[0].models] == [
        ("m", "loading", 1 << 30, True),
        ("later", "offered", 2 << 30, True),
    ]
    assert beat.models[0].load_seconds > 0
    coordinator.wait_for(lambda: coordinator.beats[-1].models[0].idle_seconds > 0)


def test_drain_and_load_do_not_disturb_each_other(start_agent, coordinator, web):
    start_agent(coordinator.url, "m", options=("--offer", "later"))
    coordinator.wait_ready("m")
    coordinator.drain = True
    coordinator.wait_for(lambda: coordinator.beats[-1].draining)
    assert coordinator.beats[-1].draining_reason == "drained by the operator"
    web.control(coordinator.node, Load("later"))
    coordinator.wait_ready("later")
    assert coordinator.beats[-1].draining
    assert coordinator.beats[-1].attempts == []
    web.control(coordinator.node, Unload("m"))
    coordinator.wait_for(lambda: coordinator.states()["m"] == "offered")
    assert coordinator.beats[-1].draining


def test_a_load_that_takes_too_long_is_ended(start_agent, coordinator):
    agent = start_agent(
        coordinator.url, knobs=("--load-seconds", "60", "--children"), options=("--load-seconds", "1")
    )
    coordinator.wait_for(lambda: len(agent.tree()) >= 2)
    assert agent.wait() == 1
    assert "--load-seconds" in agent.output.splitlines()[-1]
    assert agent.survivors() == []


def test_one_model_that_does_not_load_does_not_stop_another(start_agent, coordinator, web, tmp_path):
    (tmp_path / "bad").mkdir()
    python = write_wrapper(tmp_path / "picky")
    refusal = 'case "$*" in *"--served-model-name bad"*) echo "ValueError: broken"; exit 1;; esac'
    python.write_text(python.read_text().replace("\n", f"\n{refusal}\n", 1))
    start_agent(coordinator.url, "good", f"bad={tmp_path}/bad", options=("--engine-python", str(python)))
    coordinator.wait_for(lambda: coordinator.states() == {"good": "ready", "bad": "failed"})
    assert "broken" in coordinator.beats[-1].models[1].reason
    item = work(model="good")
    web.deliver(coordinator.node, item)
    assert isinstance(web.wait(item)[0], Done)


def test_cancel_drain_and_resume(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--per-second", "20"))
    coordinator.wait_ready("m")
    item, other = work(tokens=1000), work(tokens=30)
    web.deliver(coordinator.node, item)
    web.deliver(coordinator.node, other)
    web.wait_chunk(item)
    web.control(coordinator.node, Cancel("f" * 32, 1))
    web.control(coordinator.node, Cancel(item.job, item.attempt))
    (last,) = web.wait(item)
    assert last.outcome is Outcome.CANCELLED
    assert isinstance(web.wait(other)[0], Done)

    coordinator.drain = True
    web.control(coordinator.node, Drain())
    coordinator.wait_for(lambda: coordinator.beats[-1].draining)
    refused = work()
    web.deliver(coordinator.node, refused)
    assert web.wait(refused)[0].outcome is Outcome.DRAINING
    coordinator.drain = False
    web.control(coordinator.node, Resume())
    coordinator.wait_for(lambda: not coordinator.beats[-1].draining)
    again = work(tokens=2)
    web.deliver(coordinator.node, again)
    assert isinstance(web.wait(again)[0], Done)


def test_the_same_attempt_is_run_once(start_agent, coordinator, web):
    start_agent(coordinator.url)
    coordinator.wait_ready("m")
    item = work()
    for _ in range(3):
        web.deliver(coordinator.node, item)
    marker = work()
    web.deliver(coordinator.node, marker)
    web.wait(item, marker)
    web.read()
    assert sum(isinstance(it, Done) for it in web.of(item)) == 1


def test_twice_the_slots_is_the_most_it_takes(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--per-second", "10"), options=("--slots", "2"))
    coordinator.wait_ready("m")
    items = [work(tokens=8) for _ in range(6)]
    for item in items:
        web.deliver(coordinator.node, item)
    lasts = web.wait(*items)
    assert [isinstance(last, Done) for last in lasts] == [True] * 4 + [False] * 2
    assert {last.outcome for last in lasts[4:]} == {Outcome.ENGINE_BUSY}


def test_asynchronous_work_is_reported_until_it_is_heard(start_agent, coordinator, web):
    start_agent(coordinator.url)
    coordinator.wait_ready("m")
    coordinator.unhealthy_reports = 3
    item = work(reply="", stream=False)
    web.deliver(coordinator.node, item)
    coordinator.wait_for(lambda: any(report.reply for report in coordinator.reports))
    final = coordinator.reports[-1]
    assert (final.job, final.attempt, final.lease) == (item.job, item.attempt, item.lease)
    assert isinstance(final.reply, Done)
    assert final.reply.usage is not None
    assert final.reply.usage.completion_tokens == 6
    assert final.incarnation == coordinator.incarnation


def test_asynchronous_work_that_nobody_wants_is_ended(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--per-second", "5"))
    coordinator.wait_ready("m")
    coordinator.refuse[contract.REPORT] = (409, Refused("stale_attempt", "not live"))
    item = work(reply="", stream=False, tokens=1000)
    web.deliver(coordinator.node, item)
    coordinator.wait_for(lambda: f"{item.job}:1" not in coordinator.beats[-1].attempts)


def test_redis_away_and_back_empty_loses_nothing_that_was_owed(
    start_agent, coordinator, redis_server, broker, web
):
    agent = start_agent(coordinator.url, knobs=("--per-second", "20"))
    coordinator.wait_ready("m")
    item = work(tokens=40)
    web.deliver(coordinator.node, item)
    web.wait_chunk(item)
    redis_server.stop()
    coordinator.wait_for(lambda: not coordinator.beats[-1].redis_connected)
    assert coordinator.states() == {"m": "ready"}, "the engine stays"
    redis_server.start()
    reader = WebProcess(broker)
    (last,) = reader.wait(item)
    assert isinstance(last, Done)
    # What the old server had taken and nobody had read went down with it; all that was owed since is here.
    seqs = [it.seq for it in reader.of(item)]
    assert sorted(set(seqs)) == list(range(seqs[0], last.seq + 1))
    assert seqs[0] < 20, "what was generated while Redis was away was kept"
    coordinator.wait_for(lambda: coordinator.beats[-1].redis_connected)
    after = work()
    reader.deliver(coordinator.node, after)
    assert isinstance(reader.wait(after)[0], Done)
    assert agent.process.poll() is None


def test_a_redis_that_forgot_the_node_is_healed_by_the_next_beat(start_agent, coordinator, broker, web):
    broker.acl_setuser("n1", enabled=True, passwords=["+p1"], keys=["*"], commands=["+@all"])
    coordinator.access = RedisAccess(coordinator.redis_url, "n1", "p1")
    start_agent(coordinator.url)
    coordinator.wait_ready("m")
    broker.acl_deluser("n1")
    coordinator.wait_for(lambda: not coordinator.beats[-1].redis_connected)
    broker.acl_setuser("n1", enabled=True, passwords=["+p2"], keys=["*"], commands=["+@all"])
    coordinator.new_access = RedisAccess(coordinator.redis_url, "n1", "p2")
    coordinator.wait_ready("m")
    item = work()
    web.deliver(coordinator.node, item)
    assert isinstance(web.wait(item)[0], Done)


def test_a_coordinator_that_goes_away_is_waited_for(start_agent, coordinator, web):
    agent = start_agent(coordinator.url)
    coordinator.wait_ready("m")
    coordinator.refuse[contract.HEARTBEAT] = (503, Refused("starting", "wait"))
    item = work()
    web.deliver(coordinator.node, item)
    assert isinstance(web.wait(item)[0], Done)
    beats = len(coordinator.beats)
    del coordinator.refuse[contract.HEARTBEAT]
    coordinator.wait_for(lambda: len(coordinator.beats) > beats)
    assert agent.process.poll() is None


@pytest.mark.parametrize(
    ("path", "status", "code", "says"),
    [
        (contract.REGISTER, 401, "bad_token", "make a new one"),
        (contract.REGISTER, 426, "protocol_too_old", "update the agent"),
        (contract.REGISTER, 403, "node_revoked", "was revoked"),
        (contract.HEARTBEAT, 403, "node_revoked", "was revoked"),
        (contract.HEARTBEAT, 409, "superseded", "another agent"),
    ],
)
def test_a_refusal_that_is_final_ends_it_with_the_coordinators_words(
    start_agent, coordinator, path, status, code, says
):
    coordinator.refuse[path] = (status, Refused(code, f"this is why: {says}"))
    agent = start_agent(coordinator.url, knobs=("--children",))
    if path == contract.HEARTBEAT:
        agent.tree()
    assert agent.wait() == 1
    assert says in agent.output.splitlines()[-1]
    assert "Traceback" not in agent.output
    agent.wait_no_survivors()


def test_an_identity_in_use_is_tried_once_more(start_agent, coordinator):
    coordinator.refuse[contract.REGISTER] = (409, Refused("identity_in_use", "it runs elsewhere", 0.2))
    agent = start_agent(coordinator.url)
    assert agent.wait() == 1
    assert agent.output.count("this identity is in use") == 1
    assert "it runs elsewhere" in agent.output.splitlines()[-1]


def test_a_signal_while_it_tries_to_connect_ends_it(start_agent):
    agent = start_agent("http://127.0.0.1:9", options=("--connect-seconds", "600"))
    while "trying again" not in agent.output:
        assert agent.process.poll() is None
    agent.signal()
    assert agent.wait() == 0


def test_a_web_process_that_is_gone_frees_the_engine(start_agent, coordinator, web):
    start_agent(coordinator.url, knobs=("--per-second", "10"))
    coordinator.wait_ready("m")
    item = work(reply="gone", tokens=1000)
    web.deliver(coordinator.node, item)
    coordinator.wait_for(lambda: coordinator.beats[-1].attempts)
    coordinator.wait_for(lambda: not coordinator.beats[-1].attempts)


def test_json_logs_are_one_object_a_line(start_agent, coordinator):
    agent = start_agent(coordinator.url, env={"GPUTORRENT_LOG_JSON": "1"})
    coordinator.wait_ready("m")
    agent.signal()
    agent.wait()
    events = [json.loads(line)["event"] for line in agent.output.splitlines()]
    assert "model ready" in events
