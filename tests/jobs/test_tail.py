"""What is kept of running streams, and how it is read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.tail import Batch, Reader, Standing, Tail, Tails, chunks_in


@pytest.fixture(autouse=True)
def _small(settings: Any) -> None:
    settings.TAIL_BYTES, settings.TAIL_TOTAL_BYTES, settings.TAIL_SECONDS = 1000, 3000, 30


def job(id_: str = "j1", state: str = "running") -> Any:
    return SimpleNamespace(
        id=id_, state=state, node="n", error_code="", error_message="", prompt_tokens=3, completion_tokens=7
    )


def part(*numbers: int, wide: int = 0) -> bytes:
    return b"".join(b'data: {"n":%d%b}\n\n' % (n, b" " * wide) for n in numbers)


def numbers(batch: Batch) -> list[int]:
    return [int(chunk.strip(b'{}"n: ')) for chunk in batch.chunks]


def test_chunks_of_typed_events_are_their_data():
    whole = b': waiting\n\nevent: response.created\ndata: {"a":"event: data:"}\n\nevent: b\ndata: {"b":1}\n\n'
    assert chunks_in(whole) == [b'{"a":"event: data:"}', b'{"b":1}']


def test_chunks_are_the_events_with_data():
    whole = b': waiting\n\ndata: {"a":"x\\n\\n"}\n\ndata: {"b":1}\n\ndata: [DONE]\n\n'
    assert chunks_in(whole) == [b'{"a":"x\\n\\n"}', b'{"b":1}']


@pytest.mark.parametrize(
    ("after", "first"), [(0, [1, 2, 3, 4]), (1, [2, 3, 4]), (2, [3, 4]), (4, []), (9, [])]
)
def test_a_reader_goes_on_after_any_chunk(after: int, first: list[int]):
    tail = Tails().begin(job(), 1)
    for data in (part(1), part(2, 3), b": comment\n\n", part(4)):
        tail.add(data)
    reader = Reader(tail, after)
    batch = reader.take()
    assert (batch.before, batch.jumped, numbers(batch)) == (after, False, first)
    assert reader.at_end
    tail.add(part(5))
    assert not reader.at_end
    assert numbers(reader.take()) == ([5] if after < 5 else [])


def test_a_reader_takes_a_bounded_piece_at_a_time():
    tail = Tails().begin(job(), 1)
    for n in range(1, 7):
        tail.add(part(n))
    reader = Reader(tail)
    seen: list[int] = []
    while not reader.at_end:
        batch = reader.take(most_bytes=12)
        assert batch.before == len(seen)
        assert 0 < len(batch.chunks) <= 2
        seen += numbers(batch)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_what_falls_out_of_the_window_is_a_gap_and_no_renumbering():
    tails = Tails()
    tail = tails.begin(job(), 1)
    early, late = Reader(tail), Reader(tail, 2)
    tail.add(part(1))
    assert numbers(early.take()) == [1]
    for n in range(2, 10):
        tail.add(part(n, wide=200))
    assert tail.size <= 1000
    batch = early.take()
    assert batch.jumped
    assert numbers(batch) == list(range(batch.before + 1, 10))
    assert 2 < batch.before < 9
    assert late.take() == batch
    assert Reader(tail, 8).take() == (8, False, batch.chunks[-1:])  # what is still there is no gap
    assert tails.size == tail.size


def test_the_newest_part_is_kept_however_large():
    tail = Tails().begin(job(), 1)
    reader = Reader(tail)
    tail.add(part(1))
    tail.add(part(2, wide=5000))
    assert numbers(reader.take()) == [2]


def test_all_together_are_bounded_and_those_that_ended_go_first():
    tails = Tails()
    for n in range(3):
        over = tails.begin(job(f"over{n}"), 1)
        for i in range(1, 4):
            over.add(part(i, wide=200))
        tails.over(f"over{n}")
    first = tails.begin(job("a"), 1)
    for i in range(1, 4):
        first.add(part(i, wide=200))
    assert tails.get("over0") is None
    assert tails.get("over2") is not None
    assert len(first) == 3
    for name in "bcdefgh":
        other = tails.begin(job(name), 1)
        for i in range(1, 4):
            other.add(part(i, wide=200))
        assert len(other) >= 1
    assert tails.size <= 3000 + 300 * 7  # each keeps its newest part
    assert tails.size == sum(tail.size for name in "abcdefgh" if (tail := tails.get(name)))


def test_when_memory_is_short_who_comes_late_gets_a_share_of_it():
    tails = Tails()
    running = [tails.begin(job(name), 1) for name in "abc"]
    for n in range(30):
        running[n % 3].add(part(n, wide=20))
    assert tails.size > 2500
    running += [tails.begin(job(name), 1) for name in "def"]
    for n in range(60):
        running[n % 6].add(part(n, wide=20))
    assert min(tail.size for tail in running) >= 300


def test_an_ended_stream_is_kept_for_a_while_without_its_job():
    tails = Tails()
    one = job()
    tail = tails.begin(one, 5)
    tail.add(part(1))
    one.state = "completed"
    tails.over("j1")
    one.state = "changed"
    assert tails.get("j1") is tail
    assert tail.standing == Standing("completed", "n", "", "", 3, 7)
    assert tail._job is None
    tails.expire(0.0)
    assert tails.get("j1") is tail
    tails.expire(float("inf"))
    assert tails.get("j1") is None
    assert (tails.size, len(tails)) == (0, 0)


def test_what_streamed_nothing_is_not_kept():
    tails = Tails()
    tail = tails.begin(job(state="completed"), 5)
    tails.over("j1")
    assert len(tails) == 0
    assert tail.standing
    assert tail.standing.ended


def test_what_is_dropped_counts_as_what_is_read():
    tail = Tails().begin(job(), 1)
    parts = [
        b": hi\n\n",
        part(1),
        part(2, 3),
        b": hi\n\n" + part(4),
        b'data: {"x":"data:"}\n\ndata: [DONE]\n\n',
        b'event: a\ndata: {"x":"data:"}\n\nevent: error\ndata: {}\n\n',
    ]
    for data in parts:
        tail.add(data)
    for count, data in enumerate(parts, 1):
        tail.drop_oldest()
        assert tail.dropped == sum(len(chunks_in(p)) for p in parts[:count]), data


async def test_whoever_waits_is_woken_by_parts_and_by_states():
    tail = Tails().begin(job(), 1)

    async def woken(by: Any) -> None:
        seen = tail.version
        waiting = asyncio.create_task(tail.changed(seen))
        await asyncio.sleep(0)
        assert not waiting.done()
        by()
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(tail.changed(seen), 5)  # what came before one waits is not waited for

    await woken(lambda: tail.add(part(1)))
    await woken(tail.wake)
    await woken(lambda: tail.tell(Standing("failed")))
    await asyncio.wait_for(tail.changed(tail.version, 0.001), 5)
    assert tail._news == []


def test_a_copy_jumps_and_its_readers_notice():
    copy = Tail(Tails())
    reader = Reader(copy)
    assert copy.standing is None
    copy.add(part(1))
    reader.take()
    copy.jump_to(7)
    copy.add(part(8))
    assert reader.take() == (7, True, [b'{"n":8}'])
