"""The cluster that the clients talk to: a node with a model for each thing that may happen; one has left."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path

from tests.journeys.cluster import Cluster

FAST = "org/fast"
"""Answers at once. Its id has a slash, as most have."""
SLOW = "slow"
"""Twenty tokens a second: something to leave, or to wait for in vain."""
CUT = "cut"
"""Its streams break off after the first token."""
UNLOADABLE = "unloadable"
"""Its engine never starts."""
GONE = "gone"
"""The node that had it has left."""
MODELS = {
    FAST: (),
    SLOW: ("--per-second", "20"),
    CUT: ("--cut-stream",),
    UNLOADABLE: ("--fail-load", "no such GPU"),
}


def write_engine(path: Path) -> Path:
    """An engine's Python, for an agent, whose knobs depend on the model it is started for."""
    fake = Path(__file__).resolve().parent.parent / "fake_vllm.py"
    lines = ["#!/bin/sh", 'case " $* " in']
    lines += [
        f'*" --served-model-name {name} "*) set -- {shlex.join(knobs)} "$@" ;;'
        for name, knobs in MODELS.items()
    ]
    lines += ["esac", f'exec {shlex.quote(sys.executable)} {shlex.quote(str(fake))} "$@"', ""]
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


def furnish(cluster: Cluster) -> None:
    """Start the nodes; on return each model is as its line above says."""
    arguments = ["--engine-python", str(write_engine(cluster.folder / "engines"))]
    for name in (SLOW, CUT):
        arguments += ["--model", name]
    arguments += ["--offer", UNLOADABLE]
    for name in MODELS:
        arguments += ["--need", f"{name}=64MiB"]
    leaving = cluster.start_agent("leaving", model=GONE, arguments=("--need", f"{GONE}=64MiB"))
    cluster.start_agent("staying", model=FAST, arguments=tuple(arguments))
    cluster.until(lambda: cluster.serves("leaving", GONE), "the node that will leave is there", 60, leaving)
    leaving.stop()
    for name in (FAST, SLOW, CUT):
        cluster.until(partial(cluster.serves, "staying", name), f"{name} is served", 60)


def plan(cluster: Cluster, client: str) -> dict[str, str]:
    """What a client's program is told; the limited key is its own, since it holds all that one may."""
    limited = json.loads(cluster.manage("apikey", "create", "--name", client, "--concurrency", "1", "--json"))
    return {
        "url": f"{cluster.url}/v1", "key": cluster.key, "limited_key": limited["api_key"],
        "fast": FAST, "slow": SLOW, "cut": CUT, "gone": GONE, "unloadable": UNLOADABLE,
    }  # fmt: skip
