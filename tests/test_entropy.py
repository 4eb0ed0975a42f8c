"""Random bytes by the page: never the same twice, in no thread and in no child."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from gputorrent import entropy


def test_bytes_are_given_out_once_whichever_threads_ask():
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: [entropy.take() for _ in range(500)], range(32)))
    names = [name for some in found for name in some]
    assert len(set(names)) == len(names) == 16_000
    assert {len(name) for name in names} == {entropy.SIZE}


def test_a_child_begins_a_page_of_its_own():
    entropy.take()  # so that there is a page to inherit
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writable, entropy.take())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(readable, entropy.SIZE)
    os.close(readable)
    os.close(writable)
    assert len(theirs) == entropy.SIZE
    assert theirs != entropy.take()
