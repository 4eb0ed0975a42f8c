"""A client's program, started in the client's environment: what it printed, by case."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.conformance import environments

PROGRAMS = Path(__file__).parent / "programs"
SECONDS = 400
"""For a broken build; nothing is timed here."""

Lines = dict[str, dict[str, Any]]
Seen = dict[str, Lines | Exception]
"""By client; the exception of one whose program broke."""


def run(client: str, program: str, plan: dict[str, str], log: Path) -> Lines:
    """One client through all the cases of a program, which is in `programs/`, or in `node/` for Node."""
    folder = environments.folder_of(client)
    if client == environments.NODE:
        command = ["node", str(environments.NODE_SOURCE / program), str(folder)]
    else:
        command = [str(folder / "bin" / "python"), str(PROGRAMS / program)]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(log.parent),
        "LITELLM_LOCAL_MODEL_COST_MAP": "1",
    }
    with log.open("w") as errors:
        done = subprocess.run(
            command, input=json.dumps(plan), stdout=subprocess.PIPE, stderr=errors, text=True,
            timeout=SECONDS, env=environment, check=False,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


def tried(client: str, program: str, plan: dict[str, str], log: Path) -> Lines | Exception:
    """As `run`; what went wrong is for the tests of that client to raise."""
    try:
        return run(client, program, plan, log)
    except (AssertionError, subprocess.TimeoutExpired) as e:
        return e


def saw(seen: Seen, client: str, case: str) -> dict[str, Any]:
    """What a client saw in a case. Raises AssertionError if it did not get so far, or broke there."""
    lines = seen[client]
    if isinstance(lines, Exception):
        raise lines
    assert case in lines, f"{client} has no such case, or ended before it"
    line = lines[case]
    assert "raised" not in line, line["raised"]
    found: dict[str, Any] = line["saw"]
    return found
