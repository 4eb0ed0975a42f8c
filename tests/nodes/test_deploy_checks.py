"""What `manage.py check --deploy` says of the environment that the README gives for production."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BEHIND_TLS = {"GPUTORRENT_HTTPS": "1", "ALLOWED_HOSTS": "gpu.example.org"}
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


def check(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    production = {
        "GPUTORRENT_MODE": "production",
        "SECRET_KEY": "0123456789abcdef" * 4,
        "DATABASE_URL": "postgres://gpu:secret@db.example.org/gpu",
        "REDIS_URL": "rediss://redis.example.org/0",
        "GPUTORRENT_DATA_DIR": str(folder),
    }
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    env = {**kept, **production, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_nothing_is_amiss_behind_tls(tmp_path):
    done = check(tmp_path, **BEHIND_TLS)
    assert done.returncode == 0, done.stderr


def test_without_tls_it_says_what_is_lost_and_nothing_else(tmp_path):
    """That browsers remember to use HTTPS, and the cookies of the admin."""
    done = check(tmp_path)
    assert set(re.findall(r"\(security\.(\w+)\)", done.stderr)) == {"W004", "W012", "W016"}
    assert done.returncode != 0
