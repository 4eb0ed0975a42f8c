"""Prometheus' own checker, where it is installed (Debian: package `prometheus`)."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed (PROMTOOL=path)")


def check(*arguments: str, stdin: bytes = b"") -> str:
    """Run ``promtool check ...``; fails with what it says unless it is content and says nothing."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, "check", *arguments], input=stdin, capture_output=True, timeout=30)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
