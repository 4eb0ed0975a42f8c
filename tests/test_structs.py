"""A web process reads messages in several threads: what msgspec makes of a type at its first use must be
there before them (see `gputorrent.structs`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

LOOK = """
import gc, json, msgspec
import gputorrent.asgi

def below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from below(each)

def described(kind):  # by what the type refers to: msgspec tells nobody
    return any(type(it).__name__ == "StructInfo" for it in gc.get_referents(kind))

def readable(kind):
    try:
        msgspec.json.Decoder(kind)
    except TypeError:
        return False
    return True

kinds = {k for k in below(msgspec.Struct) if not k.__module__.startswith("msgspec")}
bare = {k for k in kinds if not described(k)}
name = lambda k: f"{k.__module__}.{k.__qualname__}"
print(json.dumps({"kinds": sorted(map(name, kinds)), "bare": sorted(name(k) for k in bare if readable(k))}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The structs of a web process that has just started, and those of them that are not described yet."""
    env = {**os.environ, "GPUTORRENT_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_no_struct_waits_for_its_first_reader(found):
    assert found["bare"] == []


def test_what_nodes_and_callers_send_is_among_them(found):
    some = {"worker_agent.contract.Register", "worker_agent.contract.Heartbeat", "api.chat.ChatCompletion"}
    assert some <= set(found["kinds"])
