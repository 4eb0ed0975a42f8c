"""wrk (https://github.com/wg/wrk) as Debian packs it: unpacked beside us, no root needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gputorrent.environments import ROOT

_FOLDER = ROOT / ".cache" / "bench"
_PACKAGES = ("wrk", "libluajit-5.1-2", "libluajit-5.1-common")
_SCRIPT = Path(__file__).with_name("wrk.lua")


class NoWrk(RuntimeError):
    """It is not installed and cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run saw. Latencies in ms, of requests answered with 2xx or 3xx; `errors` are all others."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def find() -> list[str]:
    """The command that runs wrk, unpacking it first where it is missing. Raises `NoWrk`."""
    if found := shutil.which("wrk"):
        return [found]
    program = _FOLDER / "wrk" / "usr" / "bin" / "wrk"
    if not program.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        for command in (
            ["apt-get", "download", "-qq", *_PACKAGES],
            ["sh", "-c", "for f in *.deb; do dpkg-deb -x $f wrk; done"],
        ):
            done = subprocess.run(command, cwd=_FOLDER, capture_output=True, text=True, check=False)
            if done.returncode != 0 or not shutil.which("dpkg-deb"):
                raise NoWrk(f"install wrk (Debian, Ubuntu: apt install wrk): {done.stderr.strip()[-300:]}")
    libraries = ":".join(str(path) for path in (_FOLDER / "wrk" / "usr" / "lib").glob("*-linux-*"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(program)]


def run(port: int, key: str, body: dict[str, Any], *, connections: int, seconds: float) -> Seen:
    """Ask `port` for the same completion again and again over so many connections. Raises RuntimeError."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        done = subprocess.run(
            [
                *find(),
                *("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"),
                *("-s", str(_SCRIPT), f"http://127.0.0.1:{port}/v1/chat/completions"),
            ],
            env={**os.environ, "BENCH_KEY": key, "BENCH_BODY": file.name},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {done.stderr.strip()[-300:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    per_second = told["requests"] / told["seconds"]
    return Seen(told["requests"], per_second, told["p50_ms"], told["p99_ms"], told["errors"])
