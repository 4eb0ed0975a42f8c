"""Jobs nobody waits for: accepted, routed by django-rq, answered by the node over HTTP."""

from __future__ import annotations

from tests.journeys.cluster import MODEL, Cluster


def test_a_job_is_accepted_and_its_result_is_there_later(cluster: Cluster):
    accepted = cluster.post("/jobs", {"model": MODEL, "prompt": "left right", "max_tokens": 3})
    assert accepted.status_code == 202
    assert accepted.json()["status"] == "pending"
    record = cluster.job_ended(accepted.json()["id"])
    assert record["status"] == "completed"
    assert record["result"]["choices"][0]["text"] == "left right left"
    assert record["usage"]["total_tokens"] == 5
    assert cluster.get(accepted.headers["location"]).json() == record
    cluster.until(lambda: cluster.slots_held() == 0, "the slot is back", 5)


def test_a_job_may_name_its_url_as_in_a_batch(cluster: Cluster):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "up down"}], "max_tokens": 2}
    accepted = cluster.post("/jobs", {"url": "/v1/chat/completions", "body": body})
    record = cluster.job_ended(accepted.json()["id"])
    assert record["result"]["choices"][0]["message"]["content"] == "up down"


def test_an_engines_refusal_is_the_jobs_failure(cluster: Cluster):
    accepted = cluster.post("/jobs", {"model": MODEL, "prompt": "x", "max_tokens": 1_000_000})
    record = cluster.job_ended(accepted.json()["id"])
    assert record["status"] == "failed"
    assert record["error"]["code"] == "rejected_by_engine"


def test_a_job_waits_for_a_node_to_come_back(bare: Cluster):
    agent = bare.agent_ready("one")
    agent.stop()
    bare.until(lambda: bare.workers()["one"]["state"] == "gone", "it said goodbye", 10)
    accepted = bare.post("/jobs", {"model": MODEL, "prompt": "late", "max_tokens": 1})
    assert accepted.status_code == 202
    assert bare.job(accepted.json()["id"])["status"] == "pending"
    bare.agent_ready("one")
    assert bare.job_ended(accepted.json()["id"], 30)["result"]["choices"][0]["text"] == "late"


def test_a_job_survives_the_death_of_its_node(bare: Cluster):
    slow = bare.agent_ready("slow", "--per-second", "2")
    accepted = bare.post("/jobs", {"model": MODEL, "prompt": "again", "max_tokens": 60})
    job = accepted.json()["id"]
    bare.until(lambda: bare.job(job)["status"] == "running", "it runs", 10)
    slow.kill()
    bare.agent_ready("fast")
    record = bare.job_ended(job, 40)
    assert record["status"] == "completed"
    assert [a["node"] for a in record["attempts"]] == ["slow", "fast"]
    assert record["attempts"][0]["outcome"] == "node_lost"
