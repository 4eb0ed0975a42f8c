from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis

from tests.worker_agent.conftest import free_port
from tests.worker_agent.stand_in import WebProcess, work
from worker_agent import contract
from worker_agent.contract import Cancel, Chunk, Drain, Failed, Outcome, RedisAccess
from worker_agent.mailbox import Mailbox, remedy_for

NODE = "ab" * 8


class Owner:
    """Whoever owns a mailbox: remembers what it was told."""

    def __init__(self, **options):
        self.works: list[contract.Work] = []
        self.controls: list[contract.Control] = []
        self.gone: list[str] = []
        self.denied = 0
        self.mailbox = Mailbox(
            on_work=self.works.append,
            on_control=self.controls.append,
            on_nobody=self.gone.append,
            on_denied=self._denied,
            on_connected=lambda: None,
            **options,
        )
        self.mailbox.identify(NODE, 7, 0.2, 2.0)

    def _denied(self):
        self.denied += 1


@contextlib.asynccontextmanager
async def running(access, **options):
    owner = Owner(**options)
    await owner.mailbox.use(access)
    task = asyncio.create_task(owner.mailbox.run())
    try:
        yield owner
    finally:
        if task.done():
            task.result()  # it runs for ever: say what ended it
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await owner.mailbox.close()


@pytest.fixture
def access(redis_server):
    return RedisAccess(redis_server.url, "", "")


async def until(condition, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it asks another process
            await asyncio.sleep(0.02)


def chunk(item, seq):
    return Chunk(item.job, item.attempt, item.lease, seq, b"data: %d\n\n" % seq)


async def test_work_is_taken_in_order_and_deleted_once_read(access, broker, web):
    items = [work() for _ in range(20)]
    for item in items[:10]:
        web.deliver(NODE, item)  # before it is there
    async with running(access) as owner:
        await until(lambda: len(owner.works) == 10)
        for item in items[10:]:
            web.deliver(NODE, item)
        await until(lambda: len(owner.works) == 20)
        assert owner.works == items
        await until(lambda: broker.xlen(contract.inbox_key(NODE)) == 0)


async def test_control_messages_are_taken_too(access, broker, web):
    async with running(access) as owner:
        web.control(NODE, Cancel("a" * 32, 2))
        web.control(NODE, Drain())
        await until(lambda: len(owner.controls) == 2)
        assert owner.controls == [Cancel("a" * 32, 2), Drain()]
        await until(lambda: broker.xlen(contract.control_key(NODE)) == 0)


async def test_a_message_nobody_understands_is_dropped_and_the_next_one_read(access, broker, web):
    broker.xadd(contract.inbox_key(NODE), {b"m": b"\xc1 nonsense"})
    broker.xadd(contract.inbox_key(NODE), {b"other": b""})
    item = work()
    web.deliver(NODE, item)
    async with running(access) as owner:
        await until(lambda: owner.works == [item])
        await until(lambda: broker.xlen(contract.inbox_key(NODE)) == 0)


def calls(broker, name):
    return broker.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"]


@pytest.fixture
def function(broker):
    broker.function_load(contract.REPLY_SOURCE, replace=True)
    yield
    broker.function_flush()


async def test_replies_go_by_the_function_where_there_is_one(access, broker, web, function):
    item = work()
    async with running(access) as owner:
        before = calls(broker, "fcall")
        for seq in range(3):
            assert owner.mailbox.send("web1", chunk(item, seq))
            assert await owner.mailbox.flush(10)
        web.read()
        assert [it.seq for it in web.of(item)] == [0, 1, 2]
        assert calls(broker, "fcall") - before == 3


async def test_replies_go_by_a_command_where_there_is_none_and_by_the_function_once_there_is(
    access, broker, web, monkeypatch
):
    monkeypatch.setattr("worker_agent.mailbox._PLAIN_SECONDS", 0.2)
    broker.function_flush()
    item = work()
    async with running(access) as owner:
        for seq in range(3):
            assert owner.mailbox.send("web1", chunk(item, seq))
            assert await owner.mailbox.flush(10)
        assert owner.denied == 0
        assert owner.mailbox.connected
        broker.function_load(contract.REPLY_SOURCE)
        before = calls(broker, "fcall")
        seq = 3
        while calls(broker, "fcall") == before:
            assert owner.mailbox.send("web1", chunk(item, seq))
            assert await owner.mailbox.flush(10)
            seq += 1
            await asyncio.sleep(0.05)
            assert seq < 300
        web.read()
        assert [it.seq for it in web.of(item)] == list(range(seq))
    broker.function_flush()


async def test_a_node_that_may_call_no_function_appends_as_before(redis_server, broker, web, function):
    rules = ["on", ">old", "~*", "+ping", "+hello", "+client", "+xread", "+xdel", "+xadd", "+set", "+del"]
    broker.execute_command("ACL", "SETUSER", "old", *rules)
    item = work()
    async with running(RedisAccess(redis_server.url, "old", "old")) as owner:
        for seq in range(3):
            assert owner.mailbox.send("web1", chunk(item, seq))
            assert await owner.mailbox.flush(10)
        web.read()
        assert [it.seq for it in web.of(item)] == [0, 1, 2]
        assert owner.denied == 0
    broker.execute_command("ACL", "DELUSER", "old")


async def test_replies_come_in_order_and_gather_into_few_entries(access, web):
    item = work()
    async with running(access) as owner:
        await until(lambda: owner.mailbox.connected)
        for seq in range(500):
            assert owner.mailbox.send("web1", chunk(item, seq))
        assert await owner.mailbox.flush(10)
        web.read()
        assert [it.seq for it in web.of(item)] == list(range(500))
        assert web.entries < 50


async def test_a_lone_reply_waits_for_no_timer(access, web):
    item = work()
    async with running(access) as owner:
        await until(lambda: owner.mailbox.connected)
        owner.mailbox.send("web1", chunk(item, 0))
        assert await owner.mailbox.flush(10)
        web.read()
        assert [it.seq for it in web.of(item)] == [0]


async def test_the_lease_is_kept_fresh_and_given_up_at_the_end(access, broker):
    async with running(access) as owner:
        await until(lambda: broker.get(contract.lease_key(NODE)) == b"7")
        assert 0 < broker.pttl(contract.lease_key(NODE)) <= 2000
        await until(lambda: owner.mailbox.connected)
    assert broker.get(contract.lease_key(NODE)) is None


async def test_replies_never_make_a_stream_and_a_web_process_without_one_is_given_up(access, broker, web):
    item = work()
    async with running(access, nobody_seconds=0.5) as owner:
        owner.mailbox.send("nobody", chunk(item, 0))
        owner.mailbox.send("web1", chunk(item, 0))
        await until(lambda: owner.gone == ["nobody"])
        assert await owner.mailbox.flush(5)
    assert not broker.exists(contract.reply_key("nobody"))
    web.read()
    assert len(web.of(item)) == 1


async def test_an_error_of_the_agents_own_ends_it_and_is_not_swallowed(access):
    def broken(web):
        raise ValueError(web)

    owner = Owner(nobody_seconds=0.0)
    owner.mailbox._on_nobody = broken
    await owner.mailbox.use(access)
    owner.mailbox.send("nobody", chunk(work(), 0))
    with pytest.raises(ExceptionGroup, check=lambda group: group.subgroup(ValueError) is not None):
        async with asyncio.timeout(10):
            await owner.mailbox.run()
    await owner.mailbox.close()


async def test_what_is_owed_while_redis_is_away_arrives_afterwards(access, redis_server, broker, web):
    item, later = work(), work()
    async with running(access) as owner:
        await until(lambda: owner.mailbox.connected)
        redis_server.stop()
        for seq in range(50):
            assert owner.mailbox.send("web1", chunk(item, seq))
        await until(lambda: not owner.mailbox.connected)
        redis_server.start()  # empty
        web.open()
        web.cursor = "0-0"
        web.deliver(NODE, later)
        await until(lambda: owner.works == [later])
        assert await owner.mailbox.flush(10)
        web.read()
        assert [it.seq for it in web.of(item)] == list(range(50))
        await until(lambda: broker.get(contract.lease_key(NODE)) == b"7")


async def test_a_new_connection_reads_from_the_beginning(access, broker):
    """A Redis that came back with an earlier clock has entries before those that were read."""
    inbox, first, second = contract.inbox_key(NODE), work(), work()
    async with running(access) as owner:
        broker.xadd(inbox, {contract.FIELD: contract.encode(first)}, id="2000-0")
        await until(lambda: owner.works == [first] and not broker.xlen(inbox))
        with broker.pipeline() as together:
            together.delete(inbox)
            together.client_kill_filter(_type="normal", skipme=True)
            together.xadd(inbox, {contract.FIELD: contract.encode(second)}, id="1000-0")
            together.execute()
        await until(lambda: owner.works == [first, second])


async def test_what_is_owed_is_bounded(redis_server):
    item = work()
    owner = Owner(owed_bytes=10_000)
    for seq in range(1000):
        if not owner.mailbox.send("web1", chunk(item, seq)):
            break
    assert 10 < seq < 100
    assert owner.mailbox.send("web1", Failed(item.job, 1, item.lease, seq, Outcome.UNDELIVERABLE, "x"))


async def test_a_node_that_may_only_do_what_the_wire_needs_can_do_it(redis_server, broker, web):
    _grant(broker, "node1", "pw1")
    item = work()
    web.deliver(NODE, item)
    async with running(RedisAccess(redis_server.url, "node1", "pw1")) as owner:
        await until(lambda: owner.works == [item])
        owner.mailbox.send("web1", chunk(item, 0))
        assert await owner.mailbox.flush(5)
        await until(lambda: broker.xlen(contract.inbox_key(NODE)) == 0)
        await until(lambda: broker.exists(contract.lease_key(NODE)))
    assert not broker.exists(contract.lease_key(NODE))
    assert owner.denied == 0
    web.read()
    assert len(web.of(item)) == 1


async def test_refused_credentials_are_told_and_new_ones_help(redis_server, broker, web):
    item, later = work(), work()
    _grant(broker, "node1", "pw1")
    async with running(RedisAccess(redis_server.url, "node1", "pw1")) as owner:
        await until(lambda: owner.mailbox.connected)
        broker.acl_deluser("node1")
        await until(lambda: owner.denied and not owner.mailbox.connected)
        owner.mailbox.send("web1", chunk(item, 0))
        _grant(broker, "node1", "pw2")
        await owner.mailbox.use(RedisAccess(redis_server.url, "node1", "pw2"))
        web.deliver(NODE, later)
        await until(lambda: owner.works == [later])
        assert await owner.mailbox.flush(10)
    web.read()
    assert len(web.of(item)) == 1


async def test_a_read_entry_whose_deletion_is_still_owed_is_not_taken_twice(redis_server, broker, web):
    """The node may read but not delete for a while; reading from the beginning must not repeat the work."""
    item, later = work(), work()
    _grant(broker, "node1", "pw1", delete=False)
    web.deliver(NODE, item)
    async with running(RedisAccess(redis_server.url, "node1", "pw1")) as owner:
        await until(lambda: owner.works == [item] and owner.denied)
        _grant(broker, "node1", "pw1")
        await owner.mailbox.use(RedisAccess(redis_server.url, "node1", "pw1"))
        web.deliver(NODE, later)
        await until(lambda: len(owner.works) >= 2)
        assert owner.works == [item, later]
        await until(lambda: broker.xlen(contract.inbox_key(NODE)) == 0)


async def test_two_web_processes_each_get_their_own(access, broker, web):
    other, item = WebProcess(broker, "web2"), work()
    async with running(access) as owner:
        owner.mailbox.send("web1", chunk(item, 0))
        owner.mailbox.send("web2", chunk(item, 1))
        assert await owner.mailbox.flush(10)
    web.read()
    other.read()
    assert [it.seq for it in web.of(item)] == [0]
    assert [it.seq for it in other.of(item)] == [1]


def _grant(broker: redis.Redis, user: str, password: str, *, delete: bool = True) -> None:
    """A user with the rights that PROTOCOL.md lists, and nothing more."""
    own = f"gt:node:{NODE}"
    broker.execute_command(
        *("ACL", "SETUSER", user, "reset", "on", f">{password}"),
        f"(+xread {'+xdel' if delete else ''} ~{own}:inbox ~{own}:control)",
        f"(+set +del ~{own}:lease)",
        "(+xadd %W~gt:reply:*)",
    )


async def test_a_broker_that_is_never_reached_is_told_once_for_each_reason(caplog):
    with caplog.at_level("WARNING", logger="worker_agent"):
        async with running(RedisAccess(f"redis://127.0.0.1:{free_port()}/0", "", "")):
            await asyncio.sleep(1.5)  # some attempts of each of its loops
    told = [record for record in caplog.records if record.getMessage() == "no connection to the broker"]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "--redis-ca"),
        (OSError("Connection refused"), None),
    ],
)
def test_a_certificate_that_is_not_trusted_is_told_with_the_remedy(error, remedy):
    assert (remedy or "") in (remedy_for(error) or "")
    assert (remedy_for(error) is None) == (remedy is None)


async def test_it_ends_when_told_to_though_an_answer_comes_at_that_moment(access):
    # The client library loses about one cancellation in eight that meets an answer: hence so many tries.
    for n in range(40):
        owner = Owner()
        owner.mailbox.identify(NODE, 7, 0.001, 2.0)  # an answer every moment
        await owner.mailbox.use(access)
        task = asyncio.create_task(owner.mailbox.run())
        await until(lambda mailbox=owner.mailbox: mailbox.connected)
        await asyncio.sleep(0.0005 * (n % 10))
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5.0)
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            for other in rest:  # the group would not cancel its tasks a second time
                other.cancel()
            await asyncio.sleep(0.001)
        await owner.mailbox.close()
        assert done, "it went on"
