"""An environment for each client: ``python -m tests.conformance.environments [CLIENT...]`` makes them in
.cache/clients.

Made from requirements/clients-<name>.lock (the Node client from node/package-lock.json) and stamped with the
lock's hash, so that a second start does nothing. pip's and npm's settings decide where packages come from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gputorrent import environments
from gputorrent.environments import EnvironmentFailure, ensure_own, fingerprint, megabytes_in, stamp_of
from gputorrent.progress import say

CLIENTS = environments.ROOT / ".cache" / "clients"
PYTHONS = ("openai2", "openai3", "litellm", "langchain", "schemathesis")
NODE = "node"
NODE_SOURCE = Path(__file__).parent / "node"
NODE_AT_LEAST = 20
"""The oldest major version of Node.js that the locked client was seen to run on."""
REQUIRED = "CONFORMANCE_REQUIRED"
"""Set in the environment: a client whose environment is missing is a failure, not a skip."""


def lock_of(name: str) -> Path:
    """The file that pins what is in a client's environment."""
    if name == NODE:
        return NODE_SOURCE / "package-lock.json"
    return environments.ROOT / "requirements" / f"clients-{name}.lock"


def folder_of(name: str) -> Path:
    return CLIENTS / name


def missing(name: str) -> str:
    """Why a client cannot be run here; empty if it can."""
    if name == NODE:
        if why := no_node():
            return why
        made = stamp_of_node() == fingerprint_of_node()
    else:
        made = stamp_of(folder_of(name)) == fingerprint(lock_of(name))
    return "" if made else f"the environment of {name} is not there: make conformance"


def no_node() -> str:
    """Why the Node client cannot be installed on this machine; empty if it can."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"no {program} here: its client's tests want Node.js {NODE_AT_LEAST} or newer"
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)", said)
    if version is None or int(version[1]) < NODE_AT_LEAST:
        return f"this is Node.js {said.strip()}: its client's tests want {NODE_AT_LEAST} or newer"
    return ""


def fingerprint_of_node() -> str:
    return hashlib.sha256(lock_of(NODE).read_bytes()).hexdigest()


def stamp_of_node() -> str:
    try:
        return (folder_of(NODE) / environments.STAMP).read_text("ascii").strip()
    except OSError:
        return ""


def ensure_node() -> bool:
    """Install the Node client as locked. True if something was done. Raises EnvironmentFailure."""
    folder = folder_of(NODE)
    with environments.being_made(folder):
        if stamp_of_node() == fingerprint_of_node():
            return False
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE_SOURCE / name, folder / name)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EnvironmentFailure("npm could not install the Node client", done.stdout + done.stderr)
        environments.write_stamp(folder, fingerprint_of_node())
    return True


def make(name: str) -> None:
    """Make one client's environment if it is not there, and say what it cost. Raises EnvironmentFailure."""
    began = time.monotonic()
    if name == NODE:
        if why := no_node():
            say(f"left out: {why}")
            return
        done = ensure_node()
    else:
        done = ensure_own(folder_of(name), [lock_of(name)])
    if done:
        size = megabytes_in(folder_of(name))
        say(f"{name}: {size:,.0f} MB in {time.monotonic() - began:.0f} s")


def main(*names: str) -> int:
    """Make these clients' environments, or all. 1 if one could not be made."""
    CLIENTS.mkdir(parents=True, exist_ok=True)
    for name in names or (*PYTHONS, NODE):
        try:
            make(name)
        except EnvironmentFailure as e:
            sys.stderr.write(f"{e.output}\ncould not set up the environment of {name}: {e}\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted; the next start begins this step anew\n")
            return 130
    return 0


def required() -> bool:
    """Whether a missing environment is a failure."""
    return os.environ.get(REQUIRED, "") not in {"", "0"}


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
