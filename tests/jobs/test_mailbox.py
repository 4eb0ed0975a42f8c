"""The coordinator's end of the wire: what reaches a job, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import redis

from gputorrent.embedded import RedisServer
from gputorrent.redis import piped
from jobs.mailbox import Mailbox, web_key
from tests.jobs.scripted import done, until, work
from worker_agent.contract import (
    REPLY_FUNCTION,
    Cancel,
    Chunk,
    Drain,
    Failed,
    Outcome,
    control_key,
    decode_control,
    encode,
    reply_key,
)

THIS = work("j1", 2)


@dataclass
class Listener:
    """A job with a live attempt, which notes what it is told."""

    attempt: int = THIS.attempt
    lease: bytes = THIS.lease
    next_seq: int = 0
    heard: list = field(default_factory=list)

    def on_placed(self, node: str) -> None:
        self.heard.append(("placed", node))

    def on_reply(self, reply) -> None:
        self.heard.append(reply)

    def on_gap(self) -> None:
        self.heard.append("gap")


@pytest.fixture
async def mailbox(pipe) -> AsyncIterator[Mailbox]:
    box = Mailbox(pipe)
    await box.start()
    yield box
    await box.stop()


@pytest.fixture
def listener(mailbox) -> Listener:
    listening = Listener()
    mailbox.expect(THIS.job, listening)
    return listening


def chunk(seq: int, data: bytes = b"x", **changes) -> Chunk:
    fields = {"job": THIS.job, "attempt": THIS.attempt, "lease": THIS.lease, **changes}
    return Chunk(seq=seq, data=data, **fields)


@pytest.fixture
def send(wire, mailbox):
    """Append replies as a node would, and wait until they have been read and deleted."""

    async def send(*replies, **raw):
        key = reply_key(mailbox.web)
        wire.xadd(key, raw or {"m": encode(list(replies))}, nomkstream=True)
        await until(lambda: wire.xlen(key) == 0)

    return send


async def test_replies_reach_their_job_in_order_and_are_deleted(wire, mailbox, listener, send):
    await send(chunk(0), chunk(1))
    await send(done(THIS, 2))
    assert listener.heard == [chunk(0), chunk(1), done(THIS, 2)]
    assert (listener.next_seq, mailbox.stale) == (3, 0)
    assert wire.exists(reply_key(mailbox.web))


@pytest.mark.parametrize(
    "stranger",
    [
        {"lease": b"guessed.by.nobody"},
        {"lease": b""},
        {"attempt": 1},
        {"attempt": 3},
        {"job": "j2"},
    ],
)
async def test_a_reply_that_matches_no_live_attempt_is_counted_and_changes_nothing(
    mailbox, listener, send, stranger
):
    await send(chunk(0, **stranger))
    assert (listener.heard, listener.next_seq, mailbox.stale) == ([], 0, 1)
    await send(chunk(0))
    assert listener.heard == [chunk(0)]


async def test_a_reply_that_comes_twice_is_heard_once(mailbox, listener, send):
    await send(chunk(0), chunk(1))
    await send(chunk(0), chunk(1), chunk(2))
    assert [r.seq for r in listener.heard] == [0, 1, 2]
    assert mailbox.stale == 2


async def test_a_missing_reply_is_a_gap_and_what_follows_it_is_not_handed_over(listener, send):
    await send(chunk(0))
    await send(chunk(2))
    assert listener.heard == [chunk(0), "gap"]
    assert listener.next_seq == 1


async def test_a_job_that_was_forgotten_hears_nothing(mailbox, listener, send):
    mailbox.forget(THIS.job)
    await send(chunk(0))
    assert (listener.heard, mailbox.stale) == ([], 1)


@pytest.mark.parametrize(
    "garbage",
    [
        {"m": b"\xc1"},
        {"m": b""},
        {"m": b"not msgpack at all"},
        {"m": encode([[9, "j1"]])},
        {"m": encode([[3, "j1", 2, b"", 0, "no such outcome", ""]])},
        {"q": b"another field"},
        {"p": b""},
        {"p": b"\xff\xfe \xff"},
        {"p": b"j1:x y"},
    ],
)
async def test_garbage_is_survived(mailbox, listener, send, garbage):
    await send(**garbage)
    await send(chunk(0))
    assert listener.heard == [chunk(0)]


async def test_a_job_that_raises_does_not_silence_the_others(mailbox, listener, send):
    class Broken(Listener):
        def on_reply(self, reply) -> None:
            raise ZeroDivisionError

    mailbox.expect("broken", Broken())
    await send(chunk(0, job="broken"))
    await send(chunk(0))
    assert listener.heard == [chunk(0)]


async def test_the_boards_word_of_a_placement_reaches_the_job(listener, send):
    await send(p=f"{THIS.job}:{THIS.attempt} {THIS.lease.hex()} node7")
    assert listener.heard == [("placed", "node7")]


@pytest.mark.parametrize(
    "text", ["j1:2 " + "00" * 16 + " evil", f"j1:1 {THIS.lease.hex()} evil", f"j2:2 {THIS.lease.hex()} evil"]
)
async def test_a_placement_with_a_wrong_lease_is_ignored(mailbox, listener, send, text):
    await send(p=text)
    assert (listener.heard, mailbox.stale) == ([], 1)


async def test_a_failure_reaches_its_job(listener, send):
    failed = Failed(THIS.job, THIS.attempt, THIS.lease, 0, Outcome.ENGINE_DIED, "it died")
    await send(failed)
    assert listener.heard == [failed]


async def test_the_stream_is_made_again_after_redis_was_emptied(wire, mailbox, listener, send):
    await send(chunk(0))
    wire.flushall()
    await mailbox.open()
    assert wire.exists(web_key(mailbox.web))
    await send(chunk(1))
    assert [r.seq for r in listener.heard] == [0, 1]


async def test_opening_again_loses_nothing_that_lies_there(wire, pipe):
    box = Mailbox(pipe)
    await box.open()
    wire.xadd(reply_key(box.web), {"m": b"x"})
    await box.open()
    assert wire.xlen(reply_key(box.web)) == 1
    assert wire.ttl(reply_key(box.web)) > 0
    assert wire.ttl(web_key(box.web)) > 0


async def test_two_processes_have_streams_of_their_own(wire, pipe, mailbox, listener):
    other = Mailbox(pipe)
    await other.open()
    wire.xadd(reply_key(other.web), {"m": encode([chunk(0)])})
    assert listener.heard == []
    assert wire.xlen(reply_key(other.web)) == 1


async def test_closing_takes_the_stream_away(wire, pipe):
    box = Mailbox(pipe)
    await box.start()
    await box.stop()
    assert not wire.exists(reply_key(box.web), web_key(box.web))


async def test_control_messages_lie_in_the_nodes_stream(wire, mailbox):
    await mailbox.cancel("n1", "j1", 2)
    await mailbox.tell("n1", Drain())
    told = [decode_control(f[b"m"]) for _, f in wire.xrange(control_key("n1"))]
    assert told == [Cancel("j1", 2), Drain()]


async def test_the_function_of_the_nodes_is_there_and_comes_back(wire, mailbox, listener):
    first, second = chunk(0), chunk(1)
    assert wire.fcall(REPLY_FUNCTION, 0, reply_key(mailbox.web), 100, encode([first]))
    await until(lambda: listener.heard == [first])
    wire.function_flush()
    wire.delete(reply_key(mailbox.web))  # as after a restart that lost everything
    await mailbox.open()
    assert wire.fcall(REPLY_FUNCTION, 0, reply_key(mailbox.web), 100, encode([second]))
    await until(lambda: listener.heard == [first, second])


async def test_a_process_that_finds_the_function_there_says_nothing(pipe, wire, mailbox, caplog):
    other = Mailbox(pipe)
    await other.open()
    assert wire.exists(reply_key(other.web))
    assert not caplog.records


async def test_without_the_right_to_load_it_answers_come_all_the_same(pipe, wire, caplog):
    class Refusing:
        def send(self, name, *rest):
            if name != "FUNCTION":
                return pipe.send(name, *rest)
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(redis.ResponseError("NOPERM User default has no permissions"))
            return answer

    box = Mailbox(Refusing())  # type: ignore[arg-type]
    await box.open()
    assert wire.exists(reply_key(box.web))
    assert [r.levelname for r in caplog.records if "append-only file" in r.message] == ["WARNING"]


async def test_no_answer_is_written_to_disk(tmp_path, settings):
    with RedisServer(tmp_path, persist=True) as server:
        settings.REDIS_URL = server.url
        async with piped() as pipe:
            box = Mailbox(pipe)
            await box.open()
            with redis.Redis.from_url(server.url) as wire:
                for append in (
                    ("FCALL", REPLY_FUNCTION, 0, reply_key(box.web), 100, b"answer by the function"),
                    ("XADD", reply_key(box.web), "*", "m", b"answer by XADD"),
                ):
                    wire.execute_command(*append)
                assert wire.xlen(reply_key(box.web)) == 2
        server.stop()
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.aof"))
        assert b"answer by XADD" in kept
        assert b"answer by the function" not in kept
