"""Scripts of many steps: what gathers goes out as one call, and each asker gets its own answer."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.exceptions import ResponseError

from gputorrent.redis import Pipe, asynchronous
from gputorrent.steps import Steps
from tests.jobs.scripted import standing_still

_LIST = """
function verbs.add(a)
  redis.call('RPUSH', 'list', a[1])
  return redis.call('LLEN', 'list')
end
function verbs.blob(a) return ARGV[a[1]] .. a[2] end
function verbs.wrong(a) return redis.call('INCR', 'list') end
function verbs.broken(a) return a[1].no.such end
function verbs.nothing(a) end
"""


@pytest.fixture
async def client(wire):
    found = asynchronous()
    yield found
    await found.aclose()


@pytest.fixture
def steps(client) -> Steps:
    return Steps(Pipe(client), _LIST)


def calls(wire: redis.Redis) -> int:
    """How often scripts have been called."""
    told = wire.info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def test_what_gathers_in_a_turn_is_one_call_in_the_order_in_which_it_was_asked(steps, wire):
    await steps("add", "first")
    before = calls(wire)
    assert await asyncio.gather(*(steps.ask("add", n) for n in range(5))) == [2, 3, 4, 5, 6]
    assert calls(wire) == before + 1
    assert wire.lrange("list", 1, -1) == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_is_enough_for_a_call_goes_before_the_turn_is_over(steps, wire):
    await steps("add", "first")
    before = calls(wire)
    asked = [steps.ask("add", n) for n in range(100)]
    assert standing_still(lambda: wire.llen("list") == 81)  # two calls
    assert await asyncio.gather(*asked) == list(range(2, 102))
    assert calls(wire) == before + 3


async def test_more_than_a_call_holds_goes_out_in_several(steps, wire):
    await steps("add", "first")  # the script is known from now on
    before, client = calls(wire), asynchronous()
    others = Steps(Pipe(client), _LIST)  # while it has no connection all of it gathers
    assert await asyncio.gather(*(others.ask("add", n) for n in range(600))) == list(range(2, 602))
    assert calls(wire) == before + 2
    await client.aclose()


async def test_what_is_asked_while_a_call_is_under_way_goes_with_the_next(steps, wire):
    first = steps.ask("add", "a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await asyncio.gather(first, steps.ask("add", "b"), steps.ask("add", "c")) == [1, 2, 3]


async def test_each_gets_its_own_blob(steps):
    blobs = [bytes([n, 0, 255]) * n * size for size in (1, 40_000) for n in range(4)]
    asked = [steps.ask("blob", f"-{n}", blob=blob) for n, blob in enumerate(blobs)]
    assert await asyncio.gather(*asked) == [b"%b-%d" % (blob, n) for n, blob in enumerate(blobs)]


async def test_text_of_every_size_and_letter_arrives(steps):
    for text in ("", "a", "é" * 20, "x" * 40, "y" * 300, "ß" * 40_000):
        assert await steps.ask("blob", text, blob=b"") == text.encode()


async def test_a_step_that_fails_is_refused_alone(steps, wire):
    asked = [
        steps.ask("add", 1),
        steps.ask("wrong"),
        steps.ask("broken", 1),
        steps.ask("no such"),
        steps.ask("add", 2),
    ]
    answers = await asyncio.gather(*asked, steps.ask("nothing"), return_exceptions=True)
    assert (answers[0], answers[4], answers[5]) == (1, 2, None)
    assert all(isinstance(answer, ResponseError) for answer in answers[1:4])
    assert wire.llen("list") == 2


async def test_of_two_scripts_the_one_of_lesser_rank_runs_first_whichever_was_asked_first(client, wire):
    pipe = Pipe(client)
    late, soon = (Steps(pipe, f"-- {rank}\n{_LIST}", rank) for rank in (1, 0))
    for given in ((late, soon, late), (soon, late, soon)):
        wire.delete("list")
        await asyncio.gather(*(script.ask("add", int(script is late)) for script in given))
        said = [item == b"1" for item in wire.lrange("list", 0, -1)]
        assert said == sorted(said)


async def test_all_scripts_of_a_pipe_share_a_call(client, wire):
    pipe = Pipe(client)
    scripts = [Steps(pipe, f"-- {n}\n{_LIST}") for n in range(3)]
    await scripts[0]("add", "first")
    before = calls(wire)
    blobs = [script.ask("blob", f"-{n}", blob=b"%d" % n) for n, script in enumerate(scripts)]
    answers = await asyncio.gather(*(script.ask("add", "a") for script in scripts), *blobs)
    assert answers == [2, 3, 4, b"0-0", b"1-1", b"2-2"]
    assert calls(wire) == before + 1


async def test_a_script_that_fails_as_a_whole_takes_no_other_along(client, wire):
    pipe = Pipe(client)
    broken = Steps(pipe, f"{_LIST}\nbegin = function() return steps[1].no.such end")
    sound = Steps(pipe, _LIST, rank=1)
    answers = await asyncio.gather(
        broken.ask("add", "a"), sound.ask("add", "b"), broken.ask("add", "c"), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ResponseError, int, ResponseError]
    assert wire.lrange("list", 0, -1) == [b"b"]


async def test_what_nobody_waits_for_is_answered_to_who_shall_hear(steps, wire):
    heard: list[object] = []
    steps.tell("add", "quiet", heard=heard.append)
    assert await steps("add", "asked") == 2
    assert heard == [1]
    await steps._pipe.close()
    steps.tell("add", "late", heard=heard.append)
    assert isinstance(heard[1], redis.ConnectionError)
    assert wire.lrange("list", 0, -1) == [b"quiet", b"asked"]


async def test_steps_go_out_before_the_commands_of_the_same_turn(steps, wire):
    told = steps._pipe.send("LLEN", "list")
    await steps("add", "a")
    assert await told == 1


async def test_a_script_that_was_forgotten_is_sent_whole_with_all_its_steps(steps, wire):
    await steps("add", "a")
    wire.script_flush()
    assert await asyncio.gather(steps.ask("add", "b"), steps.ask("add", "c")) == [2, 3]


async def test_a_line_that_was_cut_costs_nobody_an_answer(steps, wire):
    mine = await steps._pipe.send("CLIENT", "ID")
    wire.client_kill_filter(_id=str(mine))
    assert await asyncio.gather(steps.ask("add", "a"), steps.ask("add", "b")) == [1, 2]


async def test_who_leaves_takes_nobody_s_answer_along_and_what_was_done_is_heard(steps, wire):
    heard: list[object] = []
    asked = [steps.ask("add", n, late=heard.append) for n in range(3)]
    asked[1].cancel()
    assert await asyncio.gather(asked[0], asked[2]) == [1, 3]
    assert heard == [2]


async def test_all_steps_are_refused_when_the_server_is_frozen(client, wire):
    steps = Steps(Pipe(client, answer_seconds=0.2), _LIST)
    await steps("add", "a")
    wire.client_pause(600)
    heard: list[object] = []
    asked = [steps.ask("add", n, late=heard.append) for n in range(3)]
    asked[0].cancel()
    for future in asked[1:]:
        with pytest.raises(redis.TimeoutError):
            await future
    assert [type(error) for error in heard] == [redis.TimeoutError]
    wire.client_unpause()
    assert await steps("add", "b") >= 2


async def test_a_pipe_that_is_closed_refuses_steps(steps):
    await steps("add", "a")
    await steps._pipe.close()
    with pytest.raises(redis.ConnectionError):
        await steps("add", "b")


async def test_a_blocking_client_can_take_one_step(wire):
    answer = wire.register_script(Steps.whole(_LIST))(args=Steps.alone("add", "a"))
    assert answer == [1]
