"""Child processes: none outlives its parent, none outlives its stop."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from gputorrent.children import Child

WILLING = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WILLING}"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def until(done, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def start(tmp_path):
    started = []

    def start(code: str, **more) -> Child:
        child = Child("child", python(code), tmp_path / "log", **more)
        child.start()
        started.append(child)
        until(lambda: "up" in child.output())
        return child

    yield start
    for child in started:
        child.grace = 0
        child.stop()


def test_a_willing_child_goes_at_sigterm(start):
    child = start(WILLING)
    assert child.alive
    assert child.stop() is True
    assert child.exit_status == -signal.SIGTERM
    assert child.ending() == "was ended by SIGTERM"


def test_a_stubborn_child_is_killed_after_its_grace(start):
    child = start(STUBBORN, grace=0.2)
    assert child.stop() is False
    assert child.exit_status == -signal.SIGKILL


def test_hurry_ends_the_grace(start):
    child = start(STUBBORN, grace=3600)
    assert child.stop(hurry=lambda: True) is False
    assert not child.alive


def test_what_a_child_leaves_in_its_group_is_ended_too(start):
    code = f"""
        import subprocess, sys, time
        left = subprocess.Popen([sys.executable, "-c", {WILLING!r}])
        print("up", left.pid, flush=True)
        time.sleep(60)
    """
    child = start(textwrap.dedent(code))
    until(lambda: child.output().count("up") == 2)
    left = int(child.output().split("up ")[1].split()[0])
    child.stop()
    until(lambda: gone(left))


def test_a_child_has_a_process_group_of_its_own(start):
    assert os.getpgid(start(WILLING).pid) != os.getpgrp()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_die_with_a_parent_that_is_killed(tmp_path):
    code = f"""
        import sys, time
        from pathlib import Path
        from gputorrent.children import Child
        child = Child("child", [sys.executable, "-c", {WILLING!r}], Path({str(tmp_path / "log")!r}))
        child.start()
        print(child.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(python(textwrap.dedent(code)), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: "up" in (tmp_path / "log").read_text())
        parent.kill()
    until(lambda: gone(pid))


def test_a_command_that_does_not_exist_says_so(tmp_path):
    child = Child("child", [tmp_path / "nothing"], tmp_path / "log")
    child.start()
    until(lambda: not child.alive)
    assert child.exit_status == 127
    assert "cannot start" in child.output()


def test_output_is_what_was_written_since_this_start(tmp_path):
    (tmp_path / "log").write_text("of an earlier life\n")
    child = Child("child", python("print('of this one')"), tmp_path / "log")
    child.start()
    until(lambda: not child.alive)
    assert child.output() == "of this one\n"


def test_a_child_that_was_never_started_is_stopped_already(tmp_path):
    assert Child("child", python("pass"), tmp_path / "log").stop() is True
