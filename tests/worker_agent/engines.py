"""A fake engine as a process of its own, for tests that speak to it directly."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAKE = Path(__file__).resolve().parents[1] / "fake_vllm.py"


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body = answer.read()
        return json.loads(body) if body else None


@contextlib.contextmanager
def fake_engine(port: int, *knobs: str) -> Iterator[int]:
    """Runs while in use; serves the model ``m``. The first completion (the warm-up) is made here."""
    words = ["--model", "m", "--port", str(port)]
    process = subprocess.Popen([sys.executable, str(FAKE), *knobs, *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError):
                get(port, "/health")
                break
            time.sleep(0.02)
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()
        yield port
    finally:
        process.kill()
        process.wait()
