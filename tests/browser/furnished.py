"""A cluster with a row of every kind, whose every text that comes from outside tries to be HTML."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec

from tests import fake_nvml
from tests.journeys.cluster import MODEL, Cluster
from tests.nodes import agents
from worker_agent import contract
from worker_agent.contract import ModelState, Register, Registered

HIT = "gt-hit"
"""Found as an element's id or a page's variable, some text from outside was taken for HTML."""
NASTY = f"\"'><img id={HIT} src=x onerror=\"window['{HIT}']=1\"></script><b id={HIT}>"
GUEST = "guest"
"""Begins the names of users without rights."""


def nasty_node(cluster: Cluster) -> Registered:
    """A node that tells HTML wherever it may tell text: registered, and beaten once."""
    model = agents.model("nasty/model", ModelState.FAILED, reason=NASTY, engine=NASTY)
    registration = Register(
        protocol=contract.PROTOCOL,
        agent_version=NASTY,
        name="nasty",
        machine=NASTY,
        instance=NASTY,
        host=agents.host(hostname=NASTY, os=NASTY, arch=NASTY, cpu=NASTY),
        gpus=[agents.gpu(name=NASTY, uuid=NASTY, driver=NASTY, compute_capability=NASTY)],
        models=[model],
        labels={NASTY: NASTY},
        token=cluster.token,
    )
    answer = msgspec.json.decode(_tell(cluster, contract.REGISTER, registration, ""), type=Registered)
    beat = agents.heartbeat(answer.incarnation, models=[model], draining=True, draining_reason=NASTY)
    _tell(cluster, contract.HEARTBEAT, beat, f"{answer.node}.{answer.secret}")
    return answer


def _tell(cluster: Cluster, path: str, message: Any, credential: str) -> bytes:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    done = httpx.post(cluster.url + path, content=msgspec.json.encode(message), headers=headers, timeout=20)
    assert done.status_code == 200, done.text
    return done.content


def guest_session(cluster: Cluster, *, staff: bool = False) -> str:
    """The session of one without rights; who is not staff gets none by the admin's login."""
    guest = f"User.objects.create_user({f'{GUEST}-{staff}'!r}, is_staff={staff})"
    lines = f"c = Client(); c.force_login({guest})"
    return _python(
        cluster, f"from django.test import Client; {lines}; print(c.cookies['sessionid'].value)"
    ).strip()


def _python(cluster: Cluster, line: str) -> str:
    return cluster.manage("shell", "-v", "0", "-c", f"from django.contrib.auth.models import *; {line}")


def furnish(cluster: Cluster) -> None:
    """Start a node with GPUs and one that tells nasty things; make jobs, a batch, keys, tokens, users."""
    fake_nvml.give(cluster, "NVIDIA GeForce RTX 4090:24, NVIDIA L40S:48")
    agent = cluster.start_agent("lab-a")
    nasty_node(cluster)
    nasty_name = NASTY.replace(" ", "").replace("'", "")[:60]
    _python(cluster, f"Group.objects.create(name={NASTY!r}); User.objects.create(username={nasty_name!r})")
    cluster.manage("apikey", "create", "--name", NASTY[:60])
    cluster.manage("enrolment_token", "--note", NASTY)
    cluster.until(lambda: cluster.serves("lab-a"), "lab-a serves", 30, agent)
    assert cluster.chat(NASTY, max_tokens=3).status_code == 200
    asked = {"model": MODEL, "messages": [{"role": "user", "content": NASTY}], "max_tokens": 3}
    later = cluster.post("/jobs", asked).json()
    line = {"custom_id": NASTY[:60], "method": "POST", "url": "/v1/chat/completions", "body": asked}
    with httpx.Client(base_url=cluster.url, headers=cluster.headers, timeout=20) as client:
        files = {"file": (f"{HIT}<b>.jsonl", json.dumps(line).encode())}
        sent = client.post("/v1/files", files=files, data={"purpose": "batch"}).json()
        batch = {
            "input_file_id": sent["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "metadata": {"note": NASTY},
        }  # fmt: skip
        made = client.post("/v1/batches", json=batch)
        assert made.status_code == 200, made.text
        cluster.job_ended(later["id"])
        cluster.until(
            lambda: client.get(f"/v1/batches/{made.json()['id']}").json()["status"] == "completed",
            "the batch is done", 30,
        )  # fmt: skip
