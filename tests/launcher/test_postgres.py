"""The PostgreSQL that the tests bring along."""

import os
import subprocess
import sys

import psycopg
import pytest

from tests import postgres
from tests.launcher.test_children import gone


def test_a_server_comes_and_goes_and_leaves_nothing():
    with postgres.running() as server:
        with psycopg.connect(server.url) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
            assert connection.execute("show fsync").fetchone() == ("off",)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url.replace(server.password, "wrong"))
        assert server.child is not None
        folder, pid = server.folder, server.child.pid
    assert gone(pid)
    assert not folder.exists()


def test_a_new_database_is_empty_and_apart():
    with postgres.running() as server:
        one, other = postgres.new_database(server.url), postgres.new_database(server.url)
        with psycopg.connect(one) as connection:
            connection.execute("create table t ()")
        with psycopg.connect(other) as connection:
            assert connection.execute("select to_regclass('t')").fetchone() == (None,)


def test_the_program_runs_a_command_with_the_url_and_returns_its_status():
    code = "import os, psycopg, sys; psycopg.connect(os.environ['DATABASE_URL']).close(); sys.exit(7)"
    command = [sys.executable, "-m", "tests.postgres", "--", sys.executable, "-c", code]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 7


def test_binaries_that_are_not_there_are_refused(tmp_path):
    environment = {**os.environ, "GPUTORRENT_TEST_PG_BIN": str(tmp_path)}
    command = [sys.executable, "-m", "tests.postgres", "--", "true"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 3
    assert "holds no initdb" in done.stderr
