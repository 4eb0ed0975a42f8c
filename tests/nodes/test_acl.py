"""A node's Redis user on a real server: what it needs works, everything else is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from nodes import acl
from worker_agent.contract import (
    REPLY_FUNCTION,
    REPLY_SOURCE,
    control_key,
    inbox_key,
    lease_key,
    reply_key,
)

ME, OTHER = "a" * 16, "b" * 16
MINE = {"ping", "hello", "xread", "xdel", "xadd", "set", "del", "fcall", "client|setinfo", "client|setname"}
FOR_EVERYBODY = {"auth", "quit", "reset"}  # part of the protocol: no rule can take them away


def client_of(wire: redis.Redis, node: str, password: str) -> redis.Redis:
    where = wire.connection_pool.connection_kwargs
    return redis.Redis(
        host=where["host"],
        port=where["port"],
        username=acl.username(node),
        password=password,
        retry=Retry(NoBackoff(), 0),
    )


@pytest.fixture
def me(wire: redis.Redis) -> Iterator[redis.Redis]:
    """The node's own client; its streams, another node's and a reply stream exist."""
    password, _ = acl.grant(wire, ME)
    for key in (inbox_key(ME), control_key(ME), inbox_key(OTHER), control_key(OTHER), reply_key("web")):
        wire.xadd(key, {"m": "secret"})
    for key in (lease_key(OTHER), "rq:queue:routing", "gt:nodes", "gt:board:slots:x", "gt:keys:version"):
        wire.set(key, "theirs")
    with closing(client_of(wire, ME, password)) as client:
        yield client


def test_a_node_can_do_what_it_needs(me, wire):
    assert me.ping()
    entries = dict(me.xread({inbox_key(ME): "0", control_key(ME): "0"}))
    assert set(entries) == {inbox_key(ME).encode(), control_key(ME).encode()}
    assert me.xdel(inbox_key(ME), entries[inbox_key(ME).encode()][0][0]) == 1
    assert me.xdel(control_key(ME), entries[control_key(ME).encode()][0][0]) == 1
    assert me.xadd(reply_key("web"), {"m": "reply"}, nomkstream=True, maxlen=100, approximate=True)
    assert me.set(lease_key(ME), "1", px=5000)
    assert wire.pttl(lease_key(ME)) > 0
    assert me.delete(lease_key(ME)) == 1
    assert me.client_setname("agent")


REFUSED = [
    ("XREAD", "STREAMS", reply_key("web"), "0"),
    ("XREAD", "STREAMS", inbox_key(OTHER), "0"),
    ("XREAD", "STREAMS", inbox_key(ME), reply_key("web"), "0", "0"),
    ("XRANGE", reply_key("web"), "-", "+"),
    ("XRANGE", inbox_key(ME), "-", "+"),
    ("XLEN", reply_key("web")),
    ("XDEL", reply_key("web"), "1-1"),
    ("XDEL", inbox_key(OTHER), "1-1"),
    ("XTRIM", reply_key("web"), "MAXLEN", "0"),
    ("XADD", inbox_key(ME), "*", "m", "x"),
    ("XADD", inbox_key(OTHER), "*", "m", "x"),
    ("XADD", control_key(OTHER), "*", "m", "x"),
    ("XADD", "gt:replies", "*", "m", "x"),
    ("XGROUP", "CREATE", inbox_key(ME), "g", "0"),
    ("SET", reply_key("web"), "x"),
    ("SET", inbox_key(ME), "x"),
    ("SET", lease_key(OTHER), "x"),
    ("SET", "gt:nodes", "x"),
    ("GET", lease_key(OTHER)),
    ("DEL", reply_key("web")),
    ("DEL", inbox_key(ME)),
    ("DEL", lease_key(OTHER)),
    ("DEL", lease_key(ME), reply_key("web")),
    ("GET", "gt:board:slots:x"),
    ("HGETALL", "gt:nodes"),
    ("LPUSH", "rq:queue:routing", "x"),
    ("SET", "rq:job:1", "x"),
    ("GET", "rq:queue:routing"),
    ("INCR", "gt:keys:version"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("EXISTS", reply_key("web")),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "me", "on", "nopass", "~*", "+@all"),
    ("ACL", "WHOAMI"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/"),
    ("EVAL", "return 1", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("SUBSCRIBE", "c"),
    ("PSUBSCRIBE", "*"),
    ("PUBLISH", "c", "x"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "NO-EVICT", "on"),
    ("MONITOR",),
    ("INFO",),
    ("SHUTDOWN",),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("MULTI",),
    ("RENAME", inbox_key(ME), "x"),
    ("COPY", reply_key("web"), lease_key(ME)),
    ("DUMP", reply_key("web")),
    ("OBJECT", "ENCODING", reply_key("web")),
    ("MEMORY", "USAGE", reply_key("web")),
    ("SELECT", "1"),
    ("MOVE", inbox_key(ME), "1"),
]


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_everything_else_is_refused(command, me, wire):
    before = {key: wire.dump(key) for key in wire.scan_iter()}
    with pytest.raises(redis.exceptions.NoPermissionError):
        me.execute_command(*command)
    assert {key: wire.dump(key) for key in wire.scan_iter()} == before


READER = """#!lua name=of_somebody_else
redis.register_function('any', function(keys, args) return redis.call(unpack(args)) end)
"""


@pytest.fixture
def functions(wire: redis.Redis) -> Iterator[None]:
    wire.function_load(REPLY_SOURCE, replace=True)
    wire.function_load(READER, replace=True)
    yield
    wire.function_flush()


def test_a_node_may_append_to_a_reply_stream_by_the_function(me, wire, functions):
    assert me.fcall(REPLY_FUNCTION, 0, reply_key("web"), 100, "reply")
    assert [fields for _, fields in wire.xrange(reply_key("web"))][-1] == {b"m": b"reply"}
    assert me.fcall(REPLY_FUNCTION, 0, reply_key("nobody"), 100, "reply") is None
    for key in (inbox_key(OTHER), control_key(ME), lease_key(OTHER), "gt:nodes"):
        with pytest.raises(redis.ResponseError, match="No permissions"):
            me.fcall(REPLY_FUNCTION, 0, key, 100, "reply")
    with pytest.raises(redis.exceptions.NoPermissionError):
        me.function_load(REPLY_SOURCE, replace=True)


@pytest.mark.parametrize("command", [c for c in REFUSED if c[0] not in {"MULTI", "SELECT"}], ids=" ".join)
def test_no_function_gives_a_node_what_it_may_not_do_itself(command, me, wire, functions):
    before = {key: wire.dump(key) for key in wire.scan_iter()}
    with pytest.raises(redis.ResponseError):
        me.fcall("any", 0, *command)
    assert {key: wire.dump(key) for key in wire.scan_iter()} == before


def _shortest(name: str, info: dict) -> list[str]:
    words = name.split("|")
    return words + ["x"] * (abs(info["arity"]) - len(words))


def test_no_command_of_this_server_is_open_that_is_not_on_the_list(me, wire):
    found = set()
    commands = wire.execute_command("COMMAND")
    for name, info in commands.items():
        parts = [(s[0].decode(), {"arity": s[1]}) for s in info.get("subcommands") or []]
        for full, this in parts or [(name, info)]:
            said = wire.execute_command("ACL", "DRYRUN", acl.username(ME), *_shortest(full, this))
            if said in {b"OK", "OK"}:
                found.add(full)
    assert len(commands) > 200
    # The key "x" is refused for what is bound to keys; XREAD without STREAMS is a syntax error that has none.
    assert found - FOR_EVERYBODY == MINE - {"xdel", "xadd", "set", "del"}


def test_a_new_grant_cuts_connections_that_use_the_old_password(me, wire):
    assert me.ping()
    password, _ = acl.grant(wire, ME)
    with pytest.raises(redis.RedisError):
        me.ping()
    with closing(client_of(wire, ME, password)) as again:
        assert again.ping()


def test_a_withdrawn_user_is_cut_off_and_leaves_nothing_on_the_wire(me, wire):
    me.set(lease_key(ME), "1")
    acl.withdraw(wire, ME)
    with pytest.raises(redis.RedisError):
        me.ping()
    assert not acl.exists(wire, ME)
    assert wire.exists(inbox_key(ME), control_key(ME), lease_key(ME)) == 0


def test_a_user_is_restored_with_the_password_it_had(wire):
    password, digest = acl.grant(wire, ME)
    wire.acl_deluser(acl.username(ME))
    acl.restore(wire, ME, digest)
    with closing(client_of(wire, ME, password)) as again:
        assert again.ping()
    with closing(client_of(wire, ME, "wrong")) as wrong, pytest.raises(redis.RedisError):
        wrong.ping()


@pytest.mark.parametrize(
    ("redis_url", "public", "reached_as", "told"),
    [
        ("redis://:pw@127.0.0.1:6380/0", "", "gpu.lan", "redis://gpu.lan:6380/0"),
        ("redis://:pw@127.0.0.1:6380/0", "", "localhost", "redis://127.0.0.1:6380/0"),
        ("redis://:pw@127.0.0.1:6380/0", "", "", "redis://127.0.0.1:6380/0"),
        ("redis://:pw@broker.lan/2", "", "gpu.lan", "redis://broker.lan:6379/2"),
        ("rediss://u:pw@[::1]:7000", "", "fd00::7", "rediss://[fd00::7]:7000/0"),
        ("redis://:pw@127.0.0.1/0", "rediss://public:7001/0", "gpu.lan", "rediss://public:7001/0"),
    ],
)
def test_a_node_is_told_an_address_it_can_reach_without_our_password(
    settings, redis_url, public, reached_as, told
):
    settings.REDIS_URL, settings.REDIS_PUBLIC_URL = redis_url, public
    access = acl.access(ME, "its-own", reached_as)
    assert (access.url, access.username, access.password) == (told, f"gt-node-{ME}", "its-own")
