from __future__ import annotations

import asyncio

from worker_agent.contract import Chunk, decode_replies
from worker_agent.outbox import Outbox


def chunk(seq, data=b"x", job="a"):
    return Chunk(job, 1, b"l", seq, data)


async def next_batch(box):
    """What is to be written next, as a writer gets it."""
    news = asyncio.Event()
    box.listen(news.set)
    while True:
        await news.wait()
        news.clear()
        if batch := box.batch(asyncio.get_running_loop().time()):
            return batch


def seqs(batch):
    return {web: [reply.seq for reply in decode_replies(data)] for web, data in batch.writes}


async def test_what_gathers_goes_out_together_one_list_for_each_web_process():
    box = Outbox(10_000)
    for seq in range(3):
        assert box.put("w1", chunk(seq), must=False)
    box.put("w2", chunk(0), must=False)
    assert seqs(await next_batch(box)) == {"w1": [0, 1, 2], "w2": [0]}


async def test_a_failed_write_is_repeated_as_it_was_before_anything_newer():
    box = Outbox(10_000)
    box.put("w", chunk(0), must=False)
    first = await next_batch(box)
    box.put("w", chunk(1), must=False)
    again = await next_batch(box)
    assert again.writes == first.writes
    box.done(again, set(), 0.0, 5.0)
    assert seqs(await next_batch(box)) == {"w": [1]}


async def test_beyond_the_bound_chunks_are_refused_and_last_words_are_not():
    box = Outbox(1000)
    assert box.put("w", chunk(0, b"x" * 800), must=False)
    assert not box.put("w", chunk(1, b"x" * 800), must=False)
    assert box.put("w", chunk(2), must=True)
    batch = await next_batch(box)
    box.done(batch, set(), 0.0, 5.0)
    assert box.put("w", chunk(3, b"x" * 800), must=False)


async def test_a_missing_reader_holds_up_nobody_else_and_is_given_up_in_the_end():
    loop = asyncio.get_running_loop()
    box = Outbox(1000)
    box.put("gone", chunk(0, b"x" * 500), must=False)
    box.put("here", chunk(0), must=False)
    batch = await next_batch(box)
    assert box.done(batch, {"gone"}, loop.time(), 5.0) == []
    box.put("here", chunk(1), must=False)
    assert seqs(await next_batch(box)) == {"here": [1]}
    box.done(await next_batch(box), set(), loop.time(), 5.0)
    batch = await next_batch(box)  # its turn again, a moment later
    assert seqs(batch) == {"gone": [0]}
    assert box.done(batch, {"gone"}, loop.time() + 6, 5.0) == ["gone"]
    await box.empty()
    assert box.put("w", chunk(0, b"x" * 800), must=False)


async def test_a_reader_that_comes_late_gets_everything_in_order():
    loop = asyncio.get_running_loop()
    box = Outbox(1000)
    box.put("late", chunk(0), must=False)
    batch = await next_batch(box)
    box.done(batch, {"late"}, loop.time(), 5.0)
    box.put("late", chunk(1), must=False)
    batch = await next_batch(box)
    assert seqs(batch) == {"late": [0]}
    box.done(batch, set(), loop.time(), 5.0)
    assert seqs(await next_batch(box)) == {"late": [1]}


async def test_long_lists_are_cut_into_entries_of_bounded_size():
    box = Outbox(10 << 20)
    for seq in range(30):
        box.put("w", chunk(seq, b"x" * 100_000), must=False)
    got: list[int] = []
    while len(got) < 30:
        batch = await next_batch(box)
        assert len(batch.writes) == 1
        assert len(batch.writes[0][1]) < 600_000
        got += seqs(batch)["w"]
        box.done(batch, set(), 0.0, 5.0)
    assert got == list(range(30))


async def test_deletions_are_owed_until_they_are_done():
    box = Outbox(1000)
    box.delete("inbox", b"1-0")
    batch = await next_batch(box)
    assert batch.deletes == {"inbox": [b"1-0"]}
    assert box.is_deleting("inbox", b"1-0")
    box.delete("inbox", b"2-0")
    box.done(batch, set(), 0.0, 5.0)
    assert not box.is_deleting("inbox", b"1-0")
    assert (await next_batch(box)).deletes == {"inbox": [b"2-0"]}


async def test_a_deletion_waits_for_a_reply_to_go_out_with():
    box = Outbox(1000)
    waiting = asyncio.create_task(next_batch(box))
    await asyncio.sleep(0)
    box.delete("inbox", b"1-0")
    await asyncio.sleep(0.02)
    assert not waiting.done()
    box.put("w", chunk(0), must=False)
    batch = await waiting
    assert seqs(batch) == {"w": [0]}
    assert batch.deletes == {"inbox": [b"1-0"]}
    box.done(batch, set(), 0.0, 5.0)
    await box.empty()


async def test_deletions_come_again_after_a_failed_write():
    box = Outbox(1000)
    box.delete("inbox", b"1-0")
    for _ in range(2):
        assert (await next_batch(box)).deletes == {"inbox": [b"1-0"]}
