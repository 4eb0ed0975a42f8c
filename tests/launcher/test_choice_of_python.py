"""Which Python `scripts/bootstrap` builds on, with programs that say how fast they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gputorrent.environments import ROOT

_FAKE = """#!/bin/sh
case "$*" in
    *version_info*) exit {too_old} ;;
    *perf_counter*) [ "{speed}" ] && echo "{speed}" || exit 1 ;;
    *) echo "{name} $*" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap", tmp_path / "scripts" / "bootstrap")
    (tmp_path / "bin").mkdir()
    return tmp_path


def python(folder: Path, name: str, speed: str, *, too_old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(_FAKE.format(name=name, speed=speed, too_old=int(too_old)))
    program.chmod(0o755)


def chosen(checkout: Path, **variables: str) -> str:
    # Those that stand in /usr are real, and no match for a Python that takes a microsecond.
    path = f"{checkout / 'bin'}:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, **variables}
    environment.pop("PYTHON", None) if "PYTHON" not in variables else None
    done = subprocess.run(
        ["sh", "scripts/bootstrap", "a.lock"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip()


def test_the_first_that_is_found_is_taken_though_another_is_a_little_quicker(checkout):
    python(checkout / "bin", "python3.11", "100")
    python(checkout / "bin", "python3.12", "85")
    assert chosen(checkout) == "python3.11 -m gputorrent.environments a.lock"


def test_one_that_is_quicker_by_far_is_preferred(checkout):
    python(checkout / "bin", "python3.11", "100")
    python(checkout / "bin", "python3.12", "60")
    python(checkout / "bin", "python3.13", "59")
    assert chosen(checkout).startswith("python3.12 ")


def test_one_that_can_make_no_environment_is_passed_over(checkout):
    python(checkout / "bin", "python3.11", "")
    python(checkout / "bin", "python3.12", "60")
    assert chosen(checkout).startswith("python3.12 ")


def test_one_that_is_too_old_is_passed_over(checkout):
    python(checkout / "bin", "python3.11", "10", too_old=True)
    python(checkout / "bin", "python3.13", "60")
    assert chosen(checkout).startswith("python3.13 ")


def test_what_an_environment_was_made_with_stays(checkout):
    python(checkout / ".venv" / "bin", "python", "1000")
    python(checkout / "bin", "python3.11", "1")
    assert chosen(checkout).startswith("python -m")


def test_what_was_asked_for_is_taken(checkout):
    python(checkout / "bin", "python3.11", "1")
    python(checkout / "mine", "python3.12", "1000")
    assert chosen(checkout, PYTHON=str(checkout / "mine" / "python3.12")).startswith("python3.12 ")


def test_a_python_that_was_asked_for_and_is_too_old_is_refused(checkout):
    python(checkout / "mine", "python3", "1", too_old=True)
    assert "is not Python 3.11, 3.12 or 3.13" in chosen(checkout, PYTHON=str(checkout / "mine" / "python3"))
