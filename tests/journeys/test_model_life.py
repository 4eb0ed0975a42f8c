"""The life of models on a node: offered, loaded when asked for, pushed out, pinned, refused, asleep."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.journeys.cluster import Cluster, events
from worker_agent.memory import GIB

A, B = "model-a", "model-b"


def budget(gib: float, **needs: float) -> tuple[str, ...]:
    """Arguments for a node that gives its engines so much, with models that need so much."""
    reserve = psutil.virtual_memory().total - int(gib * GIB)
    words = ["--vram-reserve", str(reserve), "--min-residence-seconds", "0"]
    for name, need in needs.items():
        words += ["--need", f"{name.replace('_', '-')}={need}GiB"]
    return tuple(words)


def two_of_which_one_fits(cluster: Cluster, *flags: str, more: tuple[str, ...] = ()):
    arguments = (*budget(3, model_a=2, model_b=2), "--offer", B, *more)
    return cluster.agent_ready("one", *flags, model=A, arguments=arguments)


def ask(cluster: Cluster, model: str, tokens: int = 2, timeout: float = 30, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, **more}
    return cluster.post("/v1/chat/completions", body, timeout=timeout)


@contextlib.contextmanager
def stream(cluster: Cluster, model: str, tokens: int = 1000) -> Iterator[Iterator[str]]:
    """The lines of a chat under way; leaving the block is the caller leaving."""
    body = {"model": model, "stream": True, "max_tokens": tokens}
    body["messages"] = [{"role": "user", "content": "a b c"}]
    with (
        httpx.Client(timeout=60, headers=cluster.headers) as client,
        client.stream("POST", f"{cluster.url}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


def models(cluster: Cluster, name: str = "one"):
    return {it["name"]: it for it in cluster.workers()[name]["models"]}


def why(cluster: Cluster, model: str) -> str:
    """Why a model is in the state it is in."""
    return models(cluster)[model]["reason"] or ""


def states(cluster: Cluster, name: str = "one"):
    return {model: it["state"] for model, it in models(cluster, name).items()}


def starts(agent, model: str) -> int:
    return agent.output().count(f"starting engine model={model} ")


def test_two_models_that_do_not_fit_together_are_served_in_turn(bare: Cluster):
    agent = two_of_which_one_fits(bare)
    assert states(bare) == {A: "ready", B: "offered"}
    assert ask(bare, A).status_code == 200
    with ThreadPoolExecutor(10) as pool:  # one load, many waiters
        answers = list(pool.map(lambda _: ask(bare, B), range(10)))
    assert [a.status_code for a in answers] == [200] * 10
    assert starts(agent, B) == 1
    bare.until(lambda: states(bare) == {A: "offered", B: "ready"}, "B has pushed A out", 10, agent)
    assert ask(bare, A).status_code == 200
    assert starts(agent, A) == 2
    assert "room is needed for model-b" in agent.output()
    bare.until(lambda: bare.slots_held() == 0, "no slot is held", 5)


def test_the_start_list_is_loaded_as_far_as_it_fits(bare: Cluster):
    arguments = (*budget(5, model_a=2, model_b=2, model_c=2), "--model", B, "--model", "model-c")
    agent = bare.agent_ready("one", model=A, arguments=arguments)
    wanted = {A: "ready", B: "ready", "model-c": "offered"}
    bare.until(lambda: states(bare) == wanted, "two of three are loaded", 20, agent)
    assert "no room" in models(bare)["model-c"]["reason"]


def test_the_least_recently_used_model_goes(bare: Cluster):
    arguments = (*budget(5, model_a=2, model_b=2, model_c=2), "--model", B, "--offer", "model-c")
    agent = bare.agent_ready("one", model=A, arguments=arguments)
    bare.until(lambda: bare.serves("one", B), "both are loaded", 20, agent)
    assert ask(bare, B).status_code == 200
    assert ask(bare, A).status_code == 200
    assert ask(bare, "model-c").status_code == 200
    wanted = {A: "ready", B: "offered", "model-c": "ready"}
    bare.until(lambda: states(bare) == wanted, "the one that was idle longest has gone", 10, agent)


def test_a_model_with_work_is_never_unloaded(bare: Cluster):
    agent = two_of_which_one_fits(bare, "--per-second", "10", "--for-model", A)
    with ThreadPoolExecutor(1) as pool:
        with stream(bare, A) as lines:
            next(lines)
            waiting = pool.submit(ask, bare, B)
            bare.until(lambda: "have work: model-a" in why(bare, B), "B waits for A", 10, agent)
            assert states(bare)[A] == "ready"
            assert next(line for line in lines if line).startswith("data: {")
        assert waiting.result().status_code == 200  # once the caller of A has left
    assert states(bare)[A] == "offered"


def test_a_pinned_model_stays_until_it_is_unpinned(bare: Cluster):
    agent = two_of_which_one_fits(bare)
    bare.manage("node", "pin", "one", A)
    bare.until(lambda: models(bare)[A]["pinned"], "it is pinned", 10, agent)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, bare, B)
        bare.until(lambda: "pinned: model-a" in why(bare, B), "B waits", 10, agent)
        assert starts(agent, B) == 0
        assert bare.post("/workers/one/models/unpin", {"model": A}).status_code < 300
        assert waiting.result().status_code == 200
    assert not models(bare)[A]["pinned"]


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_reason(bare: Cluster):
    arguments = (*budget(3, model_a=2, model_b=40), "--offer", B)
    bare.agent_ready("one", model=A, arguments=arguments)
    assert models(bare)[B]["fits"] is False
    answer = ask(bare, B, timeout=5)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "needs 40.0 GiB, this node gives 3.0 GiB" in error["message"]
    assert bare.post("/workers/one/models/load", {"model": B}).status_code == 409


@pytest.fixture
def impatient(tmp_path):
    with Cluster(tmp_path, GPUTORRENT_LOAD_WAIT_SECONDS="2", GPUTORRENT_KEEPALIVE_SECONDS="0.3") as running:
        yield running


def test_a_load_that_takes_too_long_is_503_with_retry_after_then_ready(impatient: Cluster):
    agent = impatient.agent_ready(
        *("one", "--load-seconds", "5", "--for-model", B),
        model=A,
        arguments=("--offer", B, "--load-seconds", "60"),
    )
    answer = ask(impatient, B)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_loading"
    assert int(answer.headers["retry-after"]) > 0
    impatient.until(lambda: states(impatient)[B] == "ready", "it is loaded all the same", 20, agent)
    assert ask(impatient, B).status_code == 200
    assert starts(agent, B) == 1


def test_a_stream_that_waits_for_a_load_gets_comments(tmp_path):
    with Cluster(tmp_path, GPUTORRENT_KEEPALIVE_SECONDS="0.2") as cluster:
        cluster.agent_ready(
            *("one", "--load-seconds", "2", "--for-model", B), model=A, arguments=("--offer", B)
        )
        with stream(cluster, B, tokens=3) as answer:
            lines = list(answer)
    comments = [line for line in lines if line.startswith(":")]
    assert len(comments) > 2
    seen = events(lines)
    assert seen[-1] == "[DONE]"
    assert (
        "".join(it["choices"][0]["delta"].get("content") or "" for it in seen[:-1] if it["choices"])
        == "a b c"
    )


def test_models_are_loaded_and_unloaded_by_command_and_api(bare: Cluster):
    agent = two_of_which_one_fits(bare)
    bare.manage("node", "unload", "one", A)
    bare.until(lambda: states(bare) == {A: "offered", B: "offered"}, "it is unloaded", 10, agent)
    bare.until(lambda: len(bare.processes("one")) == 1, "only the agent is left", 10, agent)
    assert bare.post("/workers/one/models/load", {"model": B}).status_code < 300
    bare.until(lambda: states(bare)[B] == "ready", "it is loaded", 10, agent)
    assert bare.post("/workers/one/models/unload", {"model": B}).status_code < 300
    bare.until(lambda: states(bare)[B] == "offered", "it is unloaded again", 10, agent)
    bare.manage("node", "load", "one", A)
    bare.until(lambda: bare.serves("one", A), "the other is loaded", 10, agent)


def test_unloading_lets_running_work_end(bare: Cluster):
    agent = two_of_which_one_fits(bare, "--per-second", "10")
    with stream(bare, A) as lines:
        next(lines)
        bare.post("/workers/one/models/unload", {"model": A})
        bare.until(lambda: states(bare)[A] == "unloading", "it says so", 10, agent)
        assert next(line for line in lines if line).startswith("data: {")
    bare.until(lambda: states(bare)[A] == "offered", "it is unloaded", 10, agent)


def test_loading_does_not_end_a_drain(bare: Cluster):
    agent = two_of_which_one_fits(bare)
    bare.manage("node", "drain", "one")
    bare.until(lambda: "drained: nothing runs" in agent.output(), "it is drained", 10, agent)
    bare.manage("node", "load", "one", B)
    bare.until(lambda: states(bare) == {A: "offered", B: "ready"}, "B is loaded", 15, agent)
    assert bare.workers()["one"]["state"] == "draining"
    assert bare.workers()["one"]["in_flight"] == 0
    bare.manage("node", "resume", "one")
    bare.until(lambda: ask(bare, B).status_code == 200, "it works again", 10)


def test_what_a_load_took_is_measured_and_remembered(bare: Cluster):
    first = bare.agent_ready("one", "--memory-mb", "200")
    measured = models(bare)["fake-model"]
    assert measured["need"] > 200 << 20
    assert measured["need"] < 1 << 30, "it is still the estimate"
    assert bare.workers()["one"]["memory_used"] == measured["need"]
    first.stop()
    second = bare.start_agent("one", "--load-seconds", "30")
    bare.until(lambda: states(bare) == {"fake-model": "loading"}, "it loads again", 20, second)
    assert models(bare)["fake-model"]["need"] == measured["need"]


def test_where_the_engine_can_sleep_it_makes_room_by_sleeping(bare: Cluster):
    agent = two_of_which_one_fits(bare, "--sleep-mode")
    assert ask(bare, B).status_code == 200
    bare.until(lambda: states(bare) == {A: "sleeping", B: "ready"}, "A sleeps", 10, agent)
    assert ask(bare, A).status_code == 200
    bare.until(lambda: states(bare) == {A: "ready", B: "sleeping"}, "they have changed places", 10, agent)
    assert (starts(agent, A), starts(agent, B)) == (1, 1), "nothing was started anew"
    bare.manage("node", "unload", "one", B)
    bare.until(lambda: states(bare)[B] == "offered", "a sleeper can be unloaded", 10, agent)


def test_without_sleep_mode_it_is_stopped(bare: Cluster):
    agent = two_of_which_one_fits(bare, "--sleep-mode", more=("--no-sleep-mode",))
    assert ask(bare, B).status_code == 200
    bare.until(lambda: states(bare) == {A: "offered", B: "ready"}, "A was stopped", 10, agent)


def test_in_quiet_hours_the_owner_has_the_machine_and_afterwards_it_works_again(bare: Cluster):
    # The agent's own time zone puts it a few seconds before the end of its quiet hours.
    utc = time.gmtime()
    ahead = 12 * 3600 - 8 - (utc.tm_hour * 3600 + utc.tm_min * 60 + utc.tm_sec)
    sign, ahead = ("-", ahead) if ahead >= 0 else ("+", -ahead)
    bare.env["TZ"] = f"OWN{sign}{ahead // 3600}:{ahead // 60 % 60:02}:{ahead % 60:02}"
    agent = bare.start_agent("one", arguments=("--quiet-hours", "Mon-Sun 00:00-12:00"))
    bare.until(lambda: bare.workers().get("one", {}).get("state") == "draining", "it drains", 20, agent)
    assert states(bare) == {"fake-model": "offered"}
    assert "quiet hours until 12:00" in json.dumps(bare.workers()["one"])
    bare.until(lambda: bare.routes("fake-model"), "routing has heard of it", 5, agent)
    assert ask(bare, "fake-model").json()["error"]["code"] == "no_workers"
    bare.until(lambda: bare.serves("one"), "they are over", 30, agent)
    assert ask(bare, "fake-model").status_code == 200


def test_two_engines_of_a_killed_agent_leave_nothing(bare: Cluster):
    arguments = (*budget(5, model_a=2, model_b=2), "--model", B, "--offer", "model-c")
    agent = bare.agent_ready("one", "--children", model=A, arguments=arguments)
    bare.until(lambda: bare.serves("one", B), "both are loaded", 20, agent)
    assert len(bare.processes("one")) >= 9
    agent.kill()
    bare.until(lambda: bare.processes("one") == [], "nothing is left", 15)


def test_an_agent_that_is_killed_while_it_loads_leaves_nothing(bare: Cluster):
    agent = bare.agent_ready(
        *("one", "--load-seconds", "60", "--children", "--for-model", B), model=A, arguments=("--offer", B)
    )
    asking = threading.Thread(target=lambda: ask(bare, B, timeout=60), daemon=True)
    asking.start()
    bare.until(lambda: states(bare)[B] == "loading" and len(bare.processes("one")) >= 7, "B loads", 15, agent)
    agent.kill()
    bare.until(lambda: bare.processes("one") == [], "nothing is left", 15)
    asking.join(60)
