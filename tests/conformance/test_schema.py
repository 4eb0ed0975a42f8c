"""schemathesis makes up requests from GET /schema: none may end in a 500, or as the schema does not say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx
import msgspec

from tests.conformance import environments
from tests.journeys.cluster import Cluster
from tests.nodes.agents import model, registration
from worker_agent.contract import Registered

MODEL = "Qwen/Qwen3-8B"
"""The one of the schema's examples, so that they are answered."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
HOOKS = Path(__file__).parent / "programs" / "schema_hooks.py"


def enrolled(cluster: Cluster, name: str) -> Registered:
    """A node that is known and does nothing: one to be steered, and one to speak for."""
    message = registration(token=cluster.token, name=name, machine=name, models=[model(MODEL)])
    answer = httpx.post(f"{cluster.url}/register", content=msgspec.json.encode(message))
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Registered)


def test_nothing_made_up_from_the_schema_is_answered_otherwise_than_it_says(needs, tmp_path):
    needs("schemathesis")
    with Cluster(tmp_path) as cluster:
        cluster.agent_ready("one", model=MODEL)
        speaking, steered = enrolled(cluster, "speaking"), enrolled(cluster, "steered")
        environment = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}},
            "SCHEMATHESIS_HOOKS": HOOKS.stem,
            "PYTHONPATH": str(HOOKS.parent),
            "CLUSTER_KEY": cluster.key,
            "CLUSTER_MODEL": MODEL,
            "CLUSTER_NODE": steered.node,
            "CLUSTER_NODE_SECRET": f"{speaking.node}.{speaking.secret}",
            "CLUSTER_INCARNATION": str(speaking.incarnation),
        }
        python = environments.folder_of("schemathesis") / "bin" / "python"
        command = [str(python), "-m", "schemathesis.cli", "run", f"{cluster.url}/schema", "--no-color"]
        command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--workers", "2"]
        # The same requests each time: what it finds can be looked at, and a run is as long as the last one.
        command += ["--max-examples", "8", "--seed", "7", "--no-shrink", "--generation-database", "none"]
        command += ["--continue-on-failure", "--request-timeout", "30", "--suppress-health-check", "all"]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        log = "\n".join(web.output() for web in cluster.web)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:] + log[-3000:]
    assert "Traceback" not in log
    made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert made
    assert int(made[1]) == int(made[2]) > 1000
    print(made[0])
