"""The pipe to Redis: what is asked in one turn, what comes back, and what becomes of it when it breaks."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.exceptions import ResponseError

from gputorrent.embedded import RedisServer
from gputorrent.redis import Script, asynchronous
from tests.jobs.scripted import standing_still, until
from worker_agent.pipe import Pipe


@pytest.fixture
async def client(wire):
    found = asynchronous()
    yield found
    await found.aclose()


async def test_each_asker_gets_its_own_answer_in_the_client_s_types(client):
    pipe = Pipe(client)
    asked = [pipe.send("SET", "a", 1), pipe.send("INCR", "a"), pipe.send("HSET", "h", "x", 2.5, b"y", b"z")]
    asked += [pipe.send("HGETALL", "h"), pipe.send("LRANGE", "none", 0, -1), pipe.send("GET", "none")]
    assert await asyncio.gather(*asked) == [True, 2, 2, {b"x": b"2.5", b"y": b"z"}, [], None]


async def test_a_refused_command_is_refused_alone(client):
    pipe = Pipe(client)
    before, wrong, after = pipe.send("SET", "a", "text"), pipe.send("INCR", "a"), pipe.send("GET", "a")
    assert await before
    with pytest.raises(ResponseError, match="not an integer"):
        await wrong
    assert await after == b"text"


async def test_who_only_listens_hears_answers_refusals_and_the_end(client):
    pipe = Pipe(client)
    heard: list[object] = []
    pipe.tell("SET", "a", "text", heard=heard.append)
    pipe.tell("INCR", "a", heard=heard.append)
    assert await pipe.send("GET", "a") == b"text"
    await pipe.close()
    pipe.tell("GET", "a", heard=heard.append)
    assert [heard[0], *map(type, heard[1:])] == [b"OK", ResponseError, redis.ConnectionError]


async def test_following_asks_anew_by_what_came_before(client, wire):
    pipe = Pipe(client)
    seen: list[object] = []

    def take(answer: object) -> None:
        seen.append(answer)
        if len(seen) == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await pipe.follow(lambda: [("SET", "last", len(seen)), ("INCR", "n")], take)
    assert seen == [1, 2, 3]
    assert await pipe.send("MGET", "n", "last") == [b"3", b"2"]


@pytest.mark.parametrize(
    "commands", [[("INCR", "text")], [("INCR", "text"), ("GET", "n")]], ids=["last", "first"]
)
async def test_following_ends_with_a_refusal(client, wire, commands):
    wire.set("text", "text")
    seen: list[object] = []
    with pytest.raises(ResponseError, match="not an integer"):
        await Pipe(client).follow(lambda: commands, seen.append)
    assert seen == []


async def test_who_follows_no_more_is_handed_nothing_more(client, wire):
    pipe = Pipe(client)
    seen: list[object] = []
    following = asyncio.create_task(pipe.follow(lambda: [("BLPOP", "list", 0)], seen.append))
    await until(lambda: wire.info("clients")["blocked_clients"] == 1)
    wire.rpush("list", "a")
    await until(lambda: len(seen) == 1)
    following.cancel()
    await asyncio.wait({following})
    wire.rpush("list", "b")
    assert await pipe.send("ECHO", "after") == b"after"
    assert len(seen) == 1


async def test_what_cannot_be_sent_is_told_to_its_asker_only(client):
    pipe = Pipe(client)
    fine = pipe.send("SET", "a", 1)
    with pytest.raises(TypeError):
        pipe.send("SET", "a", None)
    assert await fine


async def test_who_leaves_takes_nobody_s_answer_along(client):
    pipe = Pipe(client)
    asked = [pipe.send("ECHO", str(i)) for i in range(6)]
    asked[2].cancel()
    await asyncio.sleep(0)
    asked[4].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [answers[i] for i in (0, 1, 3, 5)] == [b"0", b"1", b"3", b"5"]


async def test_a_script_is_sent_again_to_a_server_that_has_forgotten_it(client, wire):
    script = Script(Pipe(client), "return ARGV[1]")
    assert await script("one") == b"one"
    wire.script_flush()
    assert await script("two") == b"two"


async def test_scripts_that_are_sent_again_keep_their_order(client, wire):
    pipe = Pipe(client)
    add, clear = (
        Script(pipe, source) for source in ("redis.call('SADD', 'k', ARGV[1])", "redis.call('DEL', 'k')")
    )
    for given in ((add, clear), (clear, add), (add, clear, add, add)):
        wire.script_flush()
        wire.delete("k")
        await asyncio.gather(*(script.ask(n) for n, script in enumerate(given)))
        after = given[max(n for n, script in enumerate(given) if script is clear) :]
        assert wire.scard("k") == len(after) - 1


async def test_a_line_cut_while_idle_costs_nobody_an_error(client, wire):
    pipe = Pipe(client)
    mine = await pipe.send("CLIENT", "ID")
    wire.client_kill_filter(_id=str(mine))
    assert await asyncio.gather(pipe.send("SET", "a", 1), pipe.send("GET", "a")) == [True, b"1"]
    assert await pipe.send("CLIENT", "ID") != mine


async def test_a_pipe_that_does_not_last_ends_with_its_line(client, wire):
    pipe = Pipe(client, lasting=False)
    mine = await pipe.send("CLIENT", "ID")
    others = len(wire.client_list()) - 1
    waiting = pipe.send("BLPOP", "none", 0)
    await asyncio.sleep(0.05)
    wire.client_kill_filter(_id=str(mine))
    for ask in (lambda: waiting, lambda: pipe.send("ECHO", "b")):
        with pytest.raises(redis.ConnectionError, match="closed by the server"):
            await ask()
    assert len(wire.client_list()) == others


async def test_who_has_gathered_need_not_wait_for_the_end_of_the_turn(client, wire):
    pipe = Pipe(client)
    pipe.send("SET", "a", 0)
    pipe.flush()  # there is no line yet: it goes out as always
    await pipe.send("SET", "a", 1)
    asked = [pipe.send("INCR", "a"), pipe.send("INCR", "a")]
    pipe.flush()
    behind = pipe.send("INCR", "a")  # while those are under way
    pipe.flush()
    assert wire.get("a") == b"3"  # nothing but these two has been written, and this loop has not turned
    assert await asyncio.gather(*asked, behind) == [2, 3, 4]


async def test_what_is_enough_for_a_trip_goes_though_another_is_under_way(client, wire):
    pipe = Pipe(client)
    pipe.push()  # there is no line yet, and nothing to write
    await pipe.send("SET", "a", 1)
    first, second = pipe.send("INCR", "a"), pipe.send("INCR", "a")
    pipe.push()
    behind = pipe.send("INCR", "a")
    pipe.push()
    pipe.push()
    last = pipe.send("INCR", "a")
    assert standing_still(lambda: wire.get("a") == b"4")  # all but the last
    assert await asyncio.gather(first, second, behind, last) == [2, 3, 4, 5]


async def test_what_is_pushed_waits_for_scripts_that_are_sent_again(client, wire):
    pipe = Pipe(client)
    add = Script(pipe, "return redis.call('RPUSH', 'k', ARGV[1])")
    await pipe.send("PING")
    asked = [add.ask("a")]
    pipe.push()
    pipe.send("BLPOP", "none", 0.2)
    pipe.push()
    asked.append(add.ask("b"))
    pipe.push()
    await until(lambda: pipe._forgotten == 1)  # of one it is known, of the other it is not yet
    asked.append(pipe.send("RPUSH", "k", "c"))
    pipe.push()
    assert await asyncio.gather(*asked) == [1, 2, 3]
    assert wire.lrange("k", 0, -1) == [b"a", b"b", b"c"]


async def test_a_line_that_is_cut_under_several_trips_costs_nobody_an_answer(client, wire):
    pipe = Pipe(client)
    mine = await pipe.send("CLIENT", "ID")
    asked = []
    wire.client_kill_filter(_id=str(mine))
    for n in range(3):
        asked.append(pipe.send("RPUSH", "k", n))
        pipe.push()
    assert await asyncio.gather(*asked) == [1, 2, 3]
    assert wire.lrange("k", 0, -1) == [b"0", b"1", b"2"]


async def test_who_comes_later_does_not_lengthen_what_others_wait(client, wire):
    pipe = Pipe(client, answer_seconds=0.3)
    assert await pipe.send("PING") in {True, b"PONG"}
    wire.client_pause(3000)
    first = pipe.send("SET", "a", 1)
    others = []
    for _ in range(40):
        others.append(pipe.send("SET", "a", 1))
        pipe.push()
        if first.done():
            break
        await asyncio.sleep(0.05)
    assert len(others) < 20
    for asked in (first, *others):
        with pytest.raises(redis.TimeoutError):
            await asked
    wire.client_unpause()


async def test_a_server_that_does_not_answer_costs_its_askers_one_time_out(client, wire):
    pipe = Pipe(client, answer_seconds=0.2)
    assert await pipe.send("PING") in {True, b"PONG"}
    wire.client_pause(1500)
    under_way = pipe.send("SET", "a", 1)
    await asyncio.sleep(0.05)
    behind = pipe.send("SET", "b", 1)  # gathers while the first is under way
    for asked in (under_way, behind):
        with pytest.raises(redis.TimeoutError):
            await asked
    wire.client_unpause()
    assert await Pipe.send(pipe, "ECHO", "again") == b"again"


async def test_a_server_that_is_gone_is_told_and_found_again(tmp_path, settings):
    with RedisServer(tmp_path) as server:
        settings.REDIS_URL = server.url
        client = asynchronous()
        pipe = Pipe(client)
        assert await pipe.send("SET", "a", 1)
        server.stop()
        for _ in range(2):
            with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
                await pipe.send("GET", "a")
        server.start()
        assert await pipe.send("ECHO", "back") == b"back"
        await client.aclose()


@pytest.mark.parametrize("used", [True, False], ids=["open", "being opened"])
async def test_a_pipe_that_is_closed_has_no_line_and_opens_none(client, wire, used):
    others = len(wire.client_list())
    pipe = Pipe(client)
    if used:
        await pipe.send("PING")
    waiting = pipe.send("ECHO", "a")
    await asyncio.sleep(0)
    await pipe.close()
    for asked in (waiting, pipe.send("ECHO", "b")):
        with pytest.raises(redis.ConnectionError):
            await asked
    await asyncio.sleep(0.05)
    assert len(wire.client_list()) == others
