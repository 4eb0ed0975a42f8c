"""A heap that keeps what it has had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gputorrent.environments import ROOT
from worker_agent import heap

PROGRAM = """
import sys
from worker_agent import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep" and not heap.keep():
    sys.exit(77)
before = resident()
block = b"x" * (20 << 20)
del block
print(resident() - before)
"""


def kept(how: str, **environment: str) -> int:
    """Bytes that a process still has after it has given back 20 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_what_was_given_back_stays_with_the_process():
    assert kept("keep") > 15 << 20
    assert kept("as usual", **heap.environment()) > 15 << 20
    assert kept("as usual") < 5 << 20
