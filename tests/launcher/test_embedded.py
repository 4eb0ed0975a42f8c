"""The embedded Redis: found, started, found again, stopped, never left behind."""

import socket
import stat
import subprocess
import sys
import textwrap

import psutil
import pytest
import redis

from gputorrent.embedded import EmbeddedRedisError, RedisServer, find_server
from tests.launcher.test_children import gone, until


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "redis"


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_it_answers_to_its_password_alone(folder):
    with RedisServer(folder) as server:
        with client(server) as r:
            assert r.ping()
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_the_password_is_readable_by_its_owner_alone_and_on_no_command_line(folder):
    with RedisServer(folder) as server:
        password = (folder / "redis.password").read_text()
        assert password in server.url
        assert stat.S_IMODE((folder / "redis.password").stat().st_mode) == 0o600
        shown = subprocess.run(
            ["ps", "-o", "args=", "-p", str(server.child.pid)], capture_output=True, text=True
        )
        assert shown.stdout
        assert password not in shown.stdout


def test_a_restart_is_found_at_the_same_url(folder):
    with RedisServer(folder) as first:
        url = first.url
    with RedisServer(folder) as second:
        assert second.url == url


def test_its_heap_keeps_what_it_has_had(folder):
    with RedisServer(folder) as server, client(server) as r:
        if r.info("memory")["mem_allocator"] != "libc":
            pytest.skip("it has a heap of its own")
        resident = psutil.Process(server.child.pid).memory_info
        before = resident().rss
        r.set("large", b"x" * (20 << 20))
        r.delete("large")
        assert resident().rss - before > 15 << 20


def test_with_persist_even_a_killed_server_keeps_what_it_had(folder):
    server = RedisServer(folder, persist=True)
    server.start()
    try:
        with client(server) as r:
            r.set("kept", "yes")
        server.kill()
        server.start()
        with client(server) as r:
            assert r.get("kept") == b"yes"
    finally:
        server.stop()


def test_without_persist_a_restart_comes_back_empty(folder):
    server = RedisServer(folder)
    server.start()
    try:
        with client(server) as r:
            r.set("lost", "yes")
        server.kill()
        server.start()
        with client(server) as r:
            assert r.dbsize() == 0
    finally:
        server.stop()


def test_a_port_that_was_taken_meanwhile_is_replaced(folder):
    with RedisServer(folder) as server:
        old = server.port
    with socket.create_server(("127.0.0.1", old)), RedisServer(folder) as server:
        assert server.port != old
        with client(server) as r:
            assert r.ping()


def test_stop_leaves_no_process_and_may_come_twice(folder):
    server = RedisServer(folder)
    server.start()
    pid = server.child.pid
    server.stop()
    server.stop()
    assert gone(pid)
    assert not (folder / "redis.pid").exists()


def test_two_servers_cannot_share_a_folder(folder):
    with RedisServer(folder) as first:
        with pytest.raises(EmbeddedRedisError, match=f"process {first.child.pid}"):
            RedisServer(folder, patience=0.2).start()
        assert first.alive


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_it_dies_with_a_parent_that_is_killed_and_the_next_one_takes_over(folder):
    code = f"""
        import time
        from pathlib import Path
        from gputorrent.embedded import RedisServer
        server = RedisServer(Path({str(folder)!r}), persist=True)
        server.start()
        print(server.child.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    with RedisServer(folder, persist=True) as server:  # waits for the other to be gone
        assert gone(pid)
        assert server.alive
    until(lambda: gone(pid))


def program(folder, version: str):
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def test_a_named_server_is_taken_if_it_is_new_enough(tmp_path):
    path = program(tmp_path, "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert find_server({"GPUTORRENT_REDIS_SERVER": str(path)}) == str(path)


@pytest.mark.parametrize("version", ["Redis server v=6.2.14 sha=0 bits=64", "something else", ""])
def test_a_server_that_is_too_old_is_refused(tmp_path, version):
    path = program(tmp_path, version)
    with pytest.raises(EmbeddedRedisError, match=r"older than 7\.0"):
        find_server({"GPUTORRENT_REDIS_SERVER": str(path)})


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(folder, tmp_path, monkeypatch):
    path = tmp_path / "broken"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo v=7.2.0 && exit 0\necho out of luck\nexit 1\n')
    path.chmod(0o755)
    monkeypatch.setenv("GPUTORRENT_REDIS_SERVER", str(path))
    with pytest.raises(EmbeddedRedisError, match="exited with status 1: out of luck"):
        RedisServer(folder).start()
