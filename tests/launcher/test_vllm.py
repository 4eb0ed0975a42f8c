"""The two commands' promise, on the real engine."""

import json
import subprocess
import sys

import pytest

from gputorrent.environments import ROOT


@pytest.mark.vllm
def test_smoke_gets_paris_from_vllm():
    done = subprocess.run(
        [sys.executable, "-m", "gputorrent", "smoke"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is True
    assert "Paris" in result["answer"]
    assert result["tokens_per_s"] > 0
