"""Stands for `docker` on a host: as much of `run` and `start` as the Join page's command uses.

An image is an environment of Python with pip and nothing of ours, which stands for vLLM's; the container's
root is a folder, so what is "installed" stays in it. $FAKE_DOCKER is the folder of all that. Options that
Docker does not have are refused; namespaces, mounts and GPUs are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FAKE_DOCKER", ""))


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="docker", allow_abbrev=False)
    verbs = own.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", allow_abbrev=False)
    for switch in ("-i", "-t", "--init"):
        run.add_argument(switch, action="store_true")
    for option in ("--name", "--gpus", "--ipc", "--network", "--entrypoint"):
        run.add_argument(option, required=True)
    run.add_argument("--stop-timeout", type=int, required=True)
    for option, name in (("-e", "env"), ("-v", "volume"), ("--mount", "mount")):
        run.add_argument(option, dest=name, action="append", default=[])
    run.add_argument("image")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    start = verbs.add_parser("start", allow_abbrev=False)
    start.add_argument("-a", action="store_true")
    start.add_argument("-i", action="store_true")
    start.add_argument("name")
    return own


def main() -> None:
    told = parser().parse_args()
    container = FOLDER / told.name
    if told.verb == "run":
        if container.exists():
            sys.exit(f"docker: the container name {told.name} is already in use")
        subprocess.run([sys.executable, "-m", "venv", container / "root"], check=True)
        made = {"env": told.env, "command": [told.entrypoint, *told.arguments]}
        (container / "made.json").write_text(json.dumps(made))
    made = json.loads((container / "made.json").read_text())
    path = f"{container / 'root' / 'bin'}:/usr/bin:/bin"
    env = {**os.environ, "PATH": path, "HOME": str(container), **dict(e.split("=", 1) for e in made["env"])}
    os.execvpe(made["command"][0], made["command"], env)


if __name__ == "__main__":
    main()
