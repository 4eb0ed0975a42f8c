"""The reaper: however an engine, its agent or the reaper itself ends, nothing of the tree stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.worker_agent.conftest import ROOT, free_port
from worker_agent import reaper
from worker_agent.process import EngineProcess, clean_leftovers, end_recorded

FAKE = [sys.executable, str(ROOT / "tests" / "fake_vllm.py")]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process trees are Linux's")


def alive(pids):
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def wait_gone(pids, seconds=15.0):
    deadline = time.monotonic() + seconds
    while left := alive(pids):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


async def wait_tree(pid, count, seconds=15.0):
    """The pids below `pid` once there are `count`."""
    async with asyncio.timeout(seconds):
        while len(found := reaper.descendants(pid)) < count:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)
    return list(found)


async def start(tmp_path, *knobs, grace=5.0, log_bytes=1 << 20):
    return await EngineProcess.start(
        [*FAKE, *knobs, "--port", str(free_port())],
        os.environ,
        record=tmp_path / "engines" / "m.json",
        log_path=tmp_path / "logs" / "m.log",
        grace_seconds=grace,
        log_bytes=log_bytes,
    )


async def test_stop_ends_the_whole_tree_even_what_ignores_sigterm(tmp_path):
    engine = await start(tmp_path, "--children")
    tree = await wait_tree(engine.pid, 3)
    assert json.loads((tmp_path / "engines" / "m.json").read_text())["processes"]
    await engine.stop()
    assert alive(tree) == []
    assert not (tmp_path / "engines" / "m.json").exists()


async def test_kill_does_not_wait_for_the_grace(tmp_path):
    engine = await start(tmp_path, "--children", "--load-seconds", "60", grace=300.0)
    tree = await wait_tree(engine.pid, 3)
    engine.kill()
    await asyncio.wait_for(engine.wait(), 15)
    assert alive(tree) == []


async def test_an_engine_that_dies_takes_its_workers_along_and_its_status_is_told(tmp_path):
    engine = await start(tmp_path, "--children", "--load-seconds", "60")
    tree = await wait_tree(engine.pid, 3)
    first = next(pid for pid in tree if psutil.Process(pid).ppid() == engine.pid)
    os.kill(first, signal.SIGKILL)
    assert await asyncio.wait_for(engine.wait(), 15) == 128 + signal.SIGKILL
    assert alive(tree) == []


async def test_the_engines_own_exit_status_is_told(tmp_path):
    engine = await start(tmp_path, "--fail-load", "no room")
    assert await asyncio.wait_for(engine.wait(), 15) == 1
    assert any("no room" in line for line in engine.output())


async def test_a_killed_reaper_leaves_nothing_either(tmp_path):
    engine = await start(tmp_path, "--children", "--load-seconds", "60")
    tree = await wait_tree(engine.pid, 3)
    async with asyncio.timeout(10):
        record = tmp_path / "engines" / "m.json"
        while len(json.loads(record.read_text())["processes"]) < 3:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    os.kill(engine.pid, signal.SIGKILL)
    assert await asyncio.wait_for(engine.wait(), 15) == -signal.SIGKILL
    assert alive(tree) == []


async def test_when_the_pipe_from_the_agent_closes_the_tree_ends(tmp_path):
    """What a SIGKILLed agent looks like from below."""
    engine = await start(tmp_path, "--children", "--load-seconds", "60", grace=0.2)
    tree = await wait_tree(engine.pid, 3)
    engine._process.stdin.close()
    await asyncio.wait_for(engine.wait(), 15)
    assert alive(tree) == []


async def test_the_log_is_bounded_and_the_tail_is_this_engines(tmp_path):
    log = tmp_path / "logs" / "m.log"
    log.parent.mkdir()
    log.write_text("of an earlier engine\n")
    noise = "import sys\nfor i in range(40000): print('line', i)\nprint('the end')"
    engine = await EngineProcess.start(
        [sys.executable, "-c", noise],
        os.environ,
        record=tmp_path / "m.json",
        log_path=log,
        log_bytes=100_000,
    )
    assert await engine.wait() == 0
    lines = engine.output()
    assert lines[-1] == "the end"
    assert "of an earlier engine" not in lines
    assert sum(path.stat().st_size for path in log.parent.iterdir()) < 300_000


def test_leftovers_on_record_are_ended_at_the_next_start(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    started = reaper.parents()[process.pid][1]
    record = tmp_path / "m.json"
    record.write_text(json.dumps({"processes": [[process.pid, started]]}))
    clean_leftovers(tmp_path)
    assert process.wait(10) == -signal.SIGKILL
    assert not record.exists()


def test_a_process_that_merely_has_the_same_number_is_left_alone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        started = reaper.parents()[process.pid][1]
        record = tmp_path / "m.json"
        record.write_text(json.dumps({"processes": [[process.pid, started - 100], [2**22 + 1, 5]]}))
        assert end_recorded(record) == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"processes": [1]}'])
def test_a_damaged_record_is_removed(tmp_path, content):
    record = tmp_path / "m.json"
    record.write_text(content)
    assert end_recorded(record) == 0
    assert not record.exists()
