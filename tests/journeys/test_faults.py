"""What callers see, and what is left behind, when parts die."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.journeys.cluster import MODEL, Cluster, events


@contextlib.contextmanager
def stream(cluster: Cluster, text: str, tokens: int) -> Iterator[httpx.Response]:
    """A chat under way; leaving the block is the caller leaving."""
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": text}],
    }
    with (
        httpx.Client(timeout=30, headers=cluster.headers) as client,
        client.stream("POST", f"{cluster.url}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield answer


def node_of_the_running_job(cluster: Cluster) -> str:
    found: list[str] = []

    def look() -> bool:
        found[:] = [w["name"] for w in cluster.workers().values() if w["in_flight"]]
        return bool(found)

    cluster.until(look, "a node reports work in flight", 10)
    return found[0]


def test_one_of_two_agents_is_killed(bare: Cluster):
    agents = {name: bare.agent_ready(name, "--per-second", "5", "--children") for name in ("one", "two")}
    bare.routed(2)
    with stream(bare, "still here", 200) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        dead = node_of_the_running_job(bare)
        # The agent, its reaper, the engine and the engine's own children: else "none is left" says nothing.
        assert len(bare.processes(dead)) >= 4
        agents[dead].kill()
        seen = events(lines)
    # The stream was begun, so it cannot be moved: it says so and ends.
    assert seen[-1]["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in seen
    # The other goes on serving, nothing of the dead one's engine is left, and its slot is back.
    assert bare.chat("hello", max_tokens=2).status_code == 200
    bare.until(lambda: not bare.processes(dead), "no process of the dead agent is left", 10)
    bare.until(lambda: bare.slots_held() == 0, "no slot is held", 10)
    bare.until(lambda: bare.workers()[dead]["state"] == "unhealthy", "it is seen as unhealthy", 15)


def test_a_caller_who_has_had_nothing_is_served_by_another_node(bare: Cluster):
    dying = bare.agent_ready("dying", "--die-after-tokens", "2", "--first-seconds", "0.5")
    bare.agent_ready("good", "--first-seconds", "0.5")
    bare.routed(2)
    with ThreadPoolExecutor(6) as pool:  # at once, so that both nodes get some
        answers = list(pool.map(lambda i: bare.chat(f"try {i}", max_tokens=4), range(6)))
    assert [a.status_code for a in answers] == [200] * 6
    records = [bare.job_ended(a.json()["id"]) for a in answers]
    moved = [r for r in records if len(r["attempts"]) > 1]
    assert moved, "no request was tried on the dying engine first"
    assert moved[0]["attempts"][0]["outcome"] in {"engine_died", "engine_unreachable"}
    assert moved[0]["attempts"][-1]["node"] == "good"
    assert dying.alive


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(bare: Cluster):
    bare.agent_ready("one", "--die-after-tokens", "6")
    with stream(bare, "a b", 50) as answer:
        seen = events(answer.iter_lines())
    assert seen[-1]["error"]["code"] == "upstream_failed"
    record = bare.job_ended(seen[0]["id"])
    assert record["status"] == "failed"
    assert record["attempts"][0]["outcome"] == "engine_died"


def test_a_response_that_breaks_off_ends_with_an_error_event(bare: Cluster):
    bare.agent_ready("one", "--die-after-tokens", "6")
    with openai.OpenAI(base_url=f"{bare.url}/v1", api_key=bare.key, max_retries=0) as client:
        told = client.responses.create(model=MODEL, input="a b", stream=True)
        assert next(told).type == "response.created"
        with pytest.raises(openai.APIError) as broken:
            list(told)
    assert broken.value.code == "upstream_failed"


def test_a_response_that_was_opened_and_not_begun_goes_to_another_node(bare: Cluster):
    bare.agent_ready("dying", "--die-on-word", "poison", "--first-seconds", "0.5")
    bare.agent_ready("good", "--first-seconds", "0.5")
    bare.routed(2)

    def ask(_: int) -> Any:
        body = {"model": MODEL, "input": "poison", "max_output_tokens": 2, "stream": True}
        answer = httpx.post(f"{bare.url}/v1/responses", json=body, headers=bare.headers, timeout=30)
        return events(answer.text.splitlines())

    with ThreadPoolExecutor(4) as pool:  # at once, so that both nodes get some
        streams = list(pool.map(ask, range(4)))
    assert [seen[-1]["type"] for seen in streams] == ["response.completed"] * 4
    assert {e["response"]["id"] for e in streams[0] if "response" in e} == {streams[0][0]["response"]["id"]}
    records = [bare.job_ended(seen[0]["response"]["id"]) for seen in streams]
    assert any(len(record["attempts"]) > 1 for record in records)


def test_a_caller_who_leaves_stops_the_engines_work(bare: Cluster):
    bare.agent_ready("one", "--per-second", "10")
    with stream(bare, "never mind", 1000) as answer:
        first = next(answer.iter_lines())
    job = events([first])[0]["id"]
    record = bare.job_ended(job)
    assert record["status"] == "cancelled"
    bare.until(lambda: bare.slots_held() == 0, "the slot is back", 5)
    bare.until(lambda: bare.workers()["one"]["in_flight"] == 0, "the agent runs nothing", 5)


def test_a_caller_who_leaves_before_the_first_token_stops_it_too(bare: Cluster):
    bare.agent_ready("one", "--first-seconds", "8")
    with httpx.Client() as client:
        try:
            client.post(
                f"{bare.url}/v1/completions",
                json={"model": MODEL, "prompt": "x", "max_tokens": 5},
                headers=bare.headers,
                timeout=1,
            )
        except httpx.ReadTimeout:
            pass
        else:
            raise AssertionError("the engine answered too early for this test")
    bare.until(lambda: bare.slots_held() == 0, "the slot is back", 5)


def test_a_hung_engine_costs_an_error_not_a_hang(bare: Cluster):
    bare.agent_ready("one", "--hang-after-tokens", "4")
    with stream(bare, "a b", 50) as answer:
        seen = events(answer.iter_lines())
    assert seen[-1]["error"]["code"] == "upstream_failed"


def test_waiting_requests_are_served_when_slots_come_free(bare: Cluster):
    bare.agent_ready("one", "--per-second", "20", arguments=("--slots", "2"))
    answers: list[int] = []

    def ask(i: int) -> None:
        answers.append(bare.chat(f"number {i}", max_tokens=6).status_code)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 10
    bare.until(lambda: bare.slots_held() == 0, "no slot is held", 5)


def test_redis_comes_back_empty_and_all_is_well_again(bare: Cluster):
    bare.agent_ready("one")
    assert bare.chat("before", max_tokens=1).status_code == 200
    bare.redis.kill()
    refused = bare.chat("meanwhile", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "broker_unavailable"
    bare.redis.start()
    bare.until(lambda: bare.chat("after", max_tokens=1).status_code == 200, "it serves again", 20)
    bare.until(lambda: bare.slots_held() == 0, "no slot is held", 5)


def test_a_terminated_web_process_lets_its_streams_end(bare: Cluster):
    bare.agent_ready("one", "--per-second", "20")
    with stream(bare, "to the end", 20) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        os.kill(bare.web[0].pid, signal.SIGTERM)
        seen = events([first, *lines])
    assert seen[-1] == "[DONE]"


def test_a_killed_web_process_leaves_no_work_behind(bare: Cluster):
    bare.agent_ready("one", "--per-second", "5")
    with contextlib.suppress(httpx.HTTPError), stream(bare, "orphan", 300) as answer:
        lines = answer.iter_lines()
        next(lines)
        bare.web[0].kill()
        list(lines)
    bare.start_web()
    bare.until(lambda: bare.serves("one"), "the node is known again", 15)
    bare.until(lambda: bare.slots_held() == 0, "the orphan's slot is back", 40)
    bare.until(lambda: bare.workers()["one"]["in_flight"] == 0, "its work was stopped", 20)


def test_ctrl_c_of_an_agent_ends_in_good_order(bare: Cluster):
    agent = bare.agent_ready("one", "--per-second", "10", "--children")
    with stream(bare, "finish this", 15) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        os.kill(agent.pid, signal.SIGINT)
        seen = events([first, *lines])
    assert seen[-1] == "[DONE]"
    bare.until(lambda: not agent.alive, "the agent has ended", 15)
    assert agent.exit_status == 0, agent.output()
    assert bare.processes("one") == []
    assert bare.workers()["one"]["state"] == "gone"
    refused = bare.chat("anyone", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_workers"
