"""HTTP by our own protocol, on a real server and raw sockets: what goes the short way, what goes uvicorn's,
and that neither gets into the other's way. The door here is a scripted one; the real one's tests are in
`tests/api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gputorrent import head, tracing
from gputorrent.connection import DOOR, Exchange
from tests.jobs.scripted import until
from tests.journeys.tls import make_certificates
from tests.listening import Listening, listening

MOST = 100_000
GOOD = "authorization: me\r\n"


class ScriptedDoor:
    """Takes `/short`. What it answers is said by the body, or by what a test puts in place of `say`."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.traces: list[str] = []
        self.left = 0
        self.answered = 0
        self.go_on = asyncio.Event()
        self.say: Callable[[Exchange, bytes], Awaitable[None]] = self.echo

    def takes(self, url: bytes) -> bool:
        return url == b"/short"

    def admit(self, asked: Exchange) -> str | None:
        self.traces.append(tracing.request_id())
        if asked.length > MOST:
            asked.refuse(413, [(b"connection", b"close")], b"too large")
        elif b"authorization" not in asked.headers:
            asked.refuse(401, [], b"who?")
        else:
            return asked.headers[b"authorization"].decode()
        return None

    async def answer(self, asked: Exchange, caller: str, body: bytes) -> None:
        assert caller == "me"
        self.traces.append(tracing.request_id())
        self.asked.append(body)
        try:
            await self.say(asked, body)
            self.answered += 1
        except asyncio.CancelledError:
            self.left += 1
            raise

    async def echo(self, asked: Exchange, body: bytes) -> None:
        await asked.whole(200, [(b"content-type", b"text/plain")], b"short:" + body)

    async def wait_and_echo(self, asked: Exchange, body: bytes) -> None:
        await self.go_on.wait()
        await self.echo(asked, body)

    async def stream(self, asked: Exchange, body: bytes) -> None:
        await asked.begin(200, [])
        await asked.part(b"first")
        await self.go_on.wait()
        await asked.part(b"")
        await asked.part(b"last")
        await asked.end()


def application(door: ScriptedDoor) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"][DOOR] = door
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        assert (b"host", b"x") in scope["headers"]
        answer = b"long:" + scope["method"].encode() + b":" + body
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


@pytest.fixture
async def door() -> ScriptedDoor:
    return ScriptedDoor()


@pytest.fixture
async def server(door: ScriptedDoor) -> AsyncIterator[Listening]:
    async with listening(application(door), timeout_keep_alive=60) as here:
        yield here


class Line:
    """A client's connection, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *pieces: bytes | str) -> None:
        for piece in pieces:
            self.writer.write(piece.encode() if isinstance(piece, str) else piece)

    async def head(self) -> tuple[str, dict[str, str]]:
        """The status line and the headers of the next answer, none of which stands twice."""
        async with asyncio.timeout(10):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = text.rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest)
        assert len(headers) == len(rest)
        return first, headers

    async def chunk(self) -> bytes:
        async with asyncio.timeout(10):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        first, headers = await self.head()
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while piece := await self.chunk():
                body += piece
        return int(first.split()[1]), headers, body

    async def ask(self, body: bytes = b"", *headers: str) -> tuple[int, dict[str, str], bytes]:
        self.send(request(body, *headers))
        return await self.answer()

    async def closed(self) -> bytes:
        """What came until the server closed the connection."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def request(body: bytes, *headers: str, first: str = "POST /short HTTP/1.1") -> bytes:
    lines = [first, "host: x", "authorization: me", *headers, f"content-length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


@pytest.fixture
async def connect(server: Listening) -> AsyncIterator[Callable[..., Awaitable[Line]]]:
    lines: list[Line] = []

    async def connect(**how: Any) -> Line:
        lines.append(Line(*await asyncio.open_connection("127.0.0.1", server.port, **how)))
        return lines[-1]

    yield connect
    for line in lines:
        await line.close()


@pytest.fixture
async def line(connect) -> Line:
    return await connect()


# -- the short way -------------------------------------------------------------------------------------


async def test_a_whole_answer_has_its_ids_its_length_and_the_date(server, line, door):
    status, headers, body = await line.ask(b"hello", "x-request-id: mine")
    assert (status, body) == (200, b"short:hello")
    assert headers["x-request-id"] == "mine"
    assert (headers["content-type"], headers["content-length"]) == ("text/plain", "11")
    assert headers["date"].endswith(" GMT")
    assert set(headers) == {"date", "content-type", "content-length", "x-request-id"}
    assert door.traces == ["mine", "mine"]
    assert tracing.request_id() == ""


async def test_one_connection_is_used_hundreds_of_times(server, line, door):
    for n in range(300):
        assert (await line.ask(b"%d" % n))[2] == b"short:%d" % n
    await until(lambda: not server.server.server_state.tasks)
    assert server.server.server_state.total_requests == 300
    assert len(server.connections) == 1


async def test_a_body_may_come_in_many_pieces(line, door):
    body = bytes(range(256)) * 40
    for size in (1, 7, 5000):
        whole = request(body) if size > 1 else request(body[:300])
        for at in range(0, len(whole), size):
            line.send(whole[at : at + size])
            await asyncio.sleep(0)
        await line.answer()
    assert door.asked == [body[:300], body, body]


async def test_small_pieces_of_a_body_are_gathered_in_one_piece_of_memory(line, door):
    held: list[int] = []

    async def say(asked: Exchange, body: bytes) -> None:
        tracemalloc.start()
        for n in range(20_000):
            asked.gather(n.to_bytes(2, "big"))
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        await asked.whole(200, [], b"")

    door.say = say
    await line.ask(b"")
    assert held[0] < 200_000  # as objects of their own they take more than 700,000


class Noting:
    """A transport that notes what is written to it."""

    def __init__(self, transport: Any, written: list[bytes]) -> None:
        self._transport, self._written = transport, written

    def write(self, data: bytes) -> None:
        self._written.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_a_stream_s_first_part_goes_at_once_and_with_its_head(line, door):
    written: list[bytes] = []

    async def say(asked: Exchange, body: bytes) -> None:
        asked.transport = Noting(asked.transport, written)  # type: ignore[assignment]
        await asked.begin(200, [])
        await asked.part(b"one")
        assert [data[:12] for data in written] == [b"HTTP/1.1 200"]
        assert written[0].endswith(b"3\r\none\r\n")
        await asked.part(b"two")
        await asked.end()

    door.say = say
    assert (await line.ask(b""))[2] == b"onetwo"
    assert written[1:] == [b"3\r\ntwo\r\n0\r\n\r\n"]


@pytest.fixture
async def streams(connect, door) -> tuple[list[Line], list[Exchange], list[bytes]]:
    """Two streams that have begun: their callers, themselves, and what is written to either from here on."""
    lines: list[Line] = [await connect(), await connect()]
    exchanges: list[Exchange] = []
    written: list[bytes] = []

    async def begin(asked: Exchange, body: bytes) -> None:
        await asked.begin(200, [])
        await asked.part(b"begun")
        asked.transport = Noting(asked.transport, written)  # type: ignore[assignment]
        exchanges.append(asked)
        await door.go_on.wait()
        asked.passes(b"token")
        if body == b"fails":
            raise ValueError("for a test")
        await asked.end()

    door.say = begin
    for line, body in zip(lines, (b"", b"fails"), strict=True):
        line.send(request(body))
        await line.head()
        assert await line.chunk() == b"begun"
    return lines, exchanges, written


async def test_tokens_of_one_turn_are_written_behind_it_one_caller_after_the_other(streams):
    lines, (one, other), written = streams
    for n in range(2):
        assert one.passes(b"a%d" % n)
        assert other.passes(b"b%d" % n)
    assert written == []
    await asyncio.sleep(0)
    assert written == [b"2\r\na0\r\n2\r\na1\r\n", b"2\r\nb0\r\n2\r\nb1\r\n"]
    for line, name in zip(lines, (b"a", b"b"), strict=True):
        assert [await line.chunk(), await line.chunk()] == [name + b"0", name + b"1"]
    assert one.passes(b"again")
    await asyncio.sleep(0)
    assert written[2:] == [b"5\r\nagain\r\n"]


async def test_not_too_many_callers_wait_for_each_other(streams, monkeypatch):
    monkeypatch.setattr("gputorrent.gathered._AT_ONCE", 2)
    _, (one, other), written = streams
    assert one.passes(b"a")
    assert other.passes(b"b")
    assert written == [b"1\r\na\r\n", b"1\r\nb\r\n"]
    assert one.passes(b"a")
    assert len(written) == 2


async def test_not_too_much_for_one_caller_gathers(streams):
    _, (one, _), written = streams
    for _ in range(3):
        assert one.passes(b"x" * 8000)
    assert [len(data) for data in written] == [3 * 8008]


async def test_tokens_that_gather_go_before_whatever_follows_them(streams, door, caplog):
    (line, failing), _, _ = streams
    door.go_on.set()
    assert [await line.chunk(), await line.chunk()] == [b"token", b""]
    assert await failing.closed() == b"5\r\ntoken\r\n"
    assert "request failed" in caplog.text


async def test_a_write_that_fails_costs_its_own_caller_alone(streams, caplog):
    (failing, fine), (one, other), _ = streams
    broken = Noting(one.transport, [])
    broken.write = None  # type: ignore[assignment]
    one.transport = broken
    one.passes(b"token")
    other.passes(b"token")
    assert await fine.chunk() == b"token"
    assert await failing.closed() == b""  # never an answer with a hole in it
    assert "part of an answer not written" in caplog.text


async def test_a_caller_who_has_left_gets_no_token_that_gathers(streams):
    (_, staying), (one, other), written = streams
    one.passes(b"token")
    one.left = True
    other.passes(b"token")
    await asyncio.sleep(0)
    await one.end()
    assert written == [b"5\r\ntoken\r\n"]
    assert await staying.chunk() == b"token"


async def test_a_body_may_be_empty_and_an_answer_may_be_large(line, door):
    async def large(asked: Exchange, body: bytes) -> None:
        await asked.whole(200, [], b"x" * 3_000_000)

    assert (await line.ask(b""))[2] == b"short:"
    door.say = large
    assert len((await line.ask(b""))[2]) == 3_000_000


async def test_a_stream_comes_in_chunks_and_an_empty_part_does_not_end_it(line, door):
    door.say = door.stream
    line.send(request(b""))
    _, headers = await line.head()
    assert headers["transfer-encoding"] == "chunked"
    assert await line.chunk() == b"first"
    door.go_on.set()
    assert [await line.chunk(), await line.chunk()] == [b"last", b""]
    assert (await line.ask(b""))[2] == b"firstlast"  # the connection goes on


async def test_who_wants_it_closed_has_it_closed(connect, door):
    for say in (door.echo, door.stream):
        door.say = say
        door.go_on.set()
        line = await connect()
        _, headers, _ = await line.ask(b"", "connection: close")
        assert headers["connection"] == "close"
        assert await line.closed() == b""


# -- uvicorn's way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n",
        request(b"hello", first="PUT /short HTTP/1.1"),
        request(b"hello", first="POST /short?x=1 HTTP/1.1"),
        request(b"hello", first="POST /sh%6frt HTTP/1.1"),
        request(b"hello", first="POST http://x/short HTTP/1.1"),
        request(b"hello", first="POST /elsewhere HTTP/1.1"),
        b"POST /short HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /short HTTP/1.1\r\nhost: x\r\n"
        b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ],
)
async def test_whatever_is_unusual_goes_the_long_way_and_the_connection_takes_the_short_one_again(
    line, door, sent
):
    line.send(sent)
    status, _, body = await line.answer()
    assert status == 200
    assert body.startswith(b"long:")
    assert body.endswith(b":hello" if b"h" in sent.partition(b"\r\n\r\n")[2] else b":")
    assert door.traces == []
    assert (await line.ask(b"again"))[2] == b"short:again"


async def test_who_would_speak_something_else_gets_what_uvicorn_makes_of_it(line, door):
    line.send(request(b"hello", "upgrade: h2c", "connection: upgrade"))
    assert (await line.answer())[0] == 200
    assert door.traces == []


async def test_http_1_0_goes_the_long_way_and_ends_the_connection(line, door):
    line.send(request(b"hello", first="POST /short HTTP/1.0"))
    assert (await line.answer())[2] == b"long:POST:hello"
    assert await line.closed() == b""


async def test_head_has_no_body(line):
    line.send(b"HEAD /short HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await line.head())[0].split()[1] == "200"
    assert (await line.ask(b"x"))[2] == b"short:x"


async def test_who_waits_to_be_told_to_go_on_is_told(line, door):
    line.send(f"POST /short HTTP/1.1\r\nhost: x\r\n{GOOD}expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
    assert await line.head() == ("HTTP/1.1 100 Continue", {})
    line.send("hello")
    assert (await line.answer())[2] == b"long:POST:hello"


async def test_uvicorns_own_access_lines_are_written_where_they_are_wanted(door):
    async with listening(application(door), access_log=True) as here:
        line = Line(*await asyncio.open_connection("127.0.0.1", here.port))
        assert (await line.ask(b"x"))[2] == b"long:POST:x"
        await line.close()


# -- one behind the other --------------------------------------------------------------------------------


async def test_requests_sent_at_once_are_answered_in_their_order(line, door):
    door.say = door.wait_and_echo
    get = b"GET /y HTTP/1.1\r\nhost: x\r\n\r\n"
    line.send(request(b"1") + get + request(b"2") + request(b"3", "connection: close"))
    await until(lambda: door.asked)
    door.go_on.set()
    answers = [(await line.answer())[2] for _ in range(4)]
    assert answers == [b"short:1", b"long:GET:", b"long:POST:2", b"long:POST:3"]
    assert await line.closed() == b""


async def test_the_short_way_is_taken_behind_the_long_one(line, door):
    line.send(b"GET /y HTTP/1.1\r\nhost: x\r\n\r\n")
    await line.answer()
    line.send(request(b"1"))
    assert (await line.answer())[2] == b"short:1"


async def test_bytes_behind_a_request_that_are_none_end_it_and_the_connection(line, door, caplog):
    door.say = door.wait_and_echo
    line.send(request(b"1"))
    await until(lambda: door.asked)
    line.send(b"\x00\x01 garbage\r\n\r\n")
    assert (await line.answer())[0] == 400
    await until(lambda: door.left)
    assert await line.closed() == b""


async def test_the_same_in_one_piece(server, line, door):
    line.send(request(b"1") + b"\x00\x01 garbage\r\n\r\n")
    assert (await line.answer())[0] == 400
    assert await line.closed() == b""
    await until(lambda: not server.server.server_state.tasks)
    assert door.asked == []


async def test_line_feeds_between_requests_are_let_pass(line, door):
    line.send(request(b"1") + b"\r\n")
    await line.answer()
    assert (await line.ask(b"2"))[2] == b"short:2"


# -- refusals before the body ----------------------------------------------------------------------------


async def test_a_stranger_is_refused_before_his_body_has_come_and_may_go_on(line, door, caplog):
    line.send("POST /short HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
    status, headers, body = await line.answer()
    assert (status, body) == (401, b"who?")
    assert headers["x-request-id"] == door.traces[0]
    line.send("01234", "56789")
    assert (await line.ask(b"me"))[2] == b"short:me"
    assert door.asked == [b"me"]
    assert "failed" not in caplog.text


async def test_what_is_declared_too_large_is_refused_and_not_read(line, door, caplog):
    with caplog.at_level(logging.INFO, "gputorrent.access"):
        line.send(f"POST /short HTTP/1.1\r\nhost: x\r\n{GOOD}content-length: {MOST + 1}\r\n\r\n")
        assert (await line.answer())[::2] == (413, b"too large")
        assert await line.closed() == b""
    assert [r.fields["status"] for r in caplog.records if r.name == "gputorrent.access"] == [413]
    assert door.asked == []


async def test_nobody_can_send_more_than_he_declared(line, door):
    line.send(request(b"12345") + b"678")  # the rest is the beginning of what is no request
    await line.answer()
    await line.closed()
    assert door.asked in ([], [b"12345"])


# -- callers who leave -----------------------------------------------------------------------------------


def access_lines(caplog) -> list[int]:
    return [r.fields["status"] for r in caplog.records if r.name == "gputorrent.access"]


async def test_before_the_body_has_come(server, line, door, caplog):
    with caplog.at_level(logging.INFO, "gputorrent.access"):
        line.send(request(b"12345")[:-2])
        await until(lambda: door.traces)
        await line.close()
        await until(lambda: not server.connections)
    assert door.asked == []
    assert access_lines(caplog) == [499]


async def test_while_he_is_being_answered(server, line, door, caplog):
    door.say = door.wait_and_echo
    with caplog.at_level(logging.INFO, "gputorrent.access"):
        line.send(request(b"1"))
        await until(lambda: door.asked)
        await line.close()
        await until(lambda: door.left)
        await until(lambda: not server.server.server_state.tasks)
    assert access_lines(caplog) == [499]


async def test_in_the_moment_his_request_is_complete(server, door, caplog):
    """The task is made and has not begun when the connection is lost."""
    protocol: Any = None
    with caplog.at_level(logging.INFO, "gputorrent.access"):
        line = Line(*await asyncio.open_connection("127.0.0.1", server.port))
        await until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.data_received(request(b"1"))
        protocol.running.leave()
        protocol.transport.abort()
        await until(lambda: not server.connections)
        await until(lambda: not server.server.server_state.tasks)
    assert door.asked == []
    assert access_lines(caplog) == [499]
    await line.close()


async def test_in_the_middle_of_a_stream(server, line, door):
    door.say = door.stream
    line.send(request(b""))
    await line.head()
    assert await line.chunk() == b"first"
    await line.close()
    await until(lambda: door.left)
    await until(lambda: not server.server.server_state.tasks)


async def test_with_others_waiting_behind(server, line, door):
    door.say = door.wait_and_echo
    line.send(request(b"1") + request(b"2"))
    await until(lambda: door.asked)
    line.writer.transport.abort()
    # Reading is paused while a request waits behind: the end is seen when the first is answered.
    door.go_on.set()
    await until(lambda: not server.connections)
    await until(lambda: not server.server.server_state.tasks)
    assert door.asked == [b"1"]


async def test_after_his_answer_nothing_is_cancelled(server, line, door):
    await line.ask(b"1")
    await line.close()
    await until(lambda: not server.connections)
    assert (door.answered, door.left) == (1, 0)


# -- what goes wrong -------------------------------------------------------------------------------------


async def test_no_header_can_be_smuggled_into_an_answer(line, door):
    async def smuggle(asked: Exchange, body: bytes) -> None:
        await asked.whole(200, [(b"x-model", body)], b"")

    door.say = smuggle
    for bad in (b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\x00b", b"\x7f"):
        status, headers, body = await line.ask(bad)
        assert (status, body) == (500, b"Internal Server Error")
        assert not {"x-model", "set-cookie"} & set(headers)
    assert (await line.ask("é b\tc".encode("latin-1")))[0] == 200


def test_a_head_is_made_of_what_it_was_given():
    heads = head.Heads()
    date = [(b"date", b"now")]
    made, stays = heads.make(200, date, [(b"a", b"b")], stays=True)
    assert (made, stays) == (b"HTTP/1.1 200 OK\r\ndate: now\r\na: b\r\n\r\n", True)
    assert heads.make(404, date, [], stays=False) == (
        b"HTTP/1.1 404 Not Found\r\ndate: now\r\nconnection: close\r\n\r\n",
        False,
    )
    assert heads.make(200, [(b"date", b"later")], [(b"connection", b"close")], stays=True) == (
        b"HTTP/1.1 200 OK\r\ndate: later\r\nconnection: close\r\n\r\n",
        False,
    )
    with pytest.raises(ValueError, match="control"):
        heads.make(200, date, [(b"a", b"b\r\nc: d")], stays=True)


async def test_a_door_that_fails_is_told_of_in_the_log_and_to_the_caller(line, door, caplog):
    async def fail(asked: Exchange, body: bytes) -> None:
        raise ZeroDivisionError

    door.say = fail
    status, _, body = await line.ask(b"", "x-request-id: mine")
    assert (status, body) == (500, b"Internal Server Error")
    (failed,) = [r for r in caplog.records if r.getMessage() == "request failed path=/short"]
    assert failed.exc_info[0] is ZeroDivisionError
    door.say = door.echo
    assert (await line.ask(b"x"))[0] == 200


async def test_a_stream_that_fails_is_cut_so_that_no_client_takes_it_for_whole(line, door, caplog):
    async def fail(asked: Exchange, body: bytes) -> None:
        await asked.begin(200, [])
        await asked.part(b"first")
        raise ZeroDivisionError

    door.say = fail
    line.send(request(b""))
    await line.head()
    assert await line.closed() == b"5\r\nfirst\r\n"
    assert "request failed path=/short" in caplog.text


async def test_an_answer_that_is_not_brought_to_its_end_is_cut(line, door, caplog):
    async def forget(asked: Exchange, body: bytes) -> None:
        await asked.begin(200, [])

    door.say = forget
    line.send(request(b""))
    await line.head()
    assert await line.closed() == b""
    assert "request not answered to its end path=/short" in caplog.text


# -- slow readers, idle ones, the end ----------------------------------------------------------------------


async def test_a_slow_reader_holds_the_answer_back_and_gets_each_byte_once(connect, door):
    most, sent, refused = 10_000, [], asyncio.Event()

    def piece(n: int) -> bytes:
        return b"%06d" % n * 500

    async def pour(asked: Exchange, body: bytes) -> None:
        await asked.begin(200, [])
        for n in range(most):
            if not asked.passes(piece(n)):
                refused.set()
                await asked.part(piece(n))
            sent.append(n)
        await asked.end()

    door.say = pour
    line = await connect(limit=4096)
    line.send(request(b""))
    await line.head()
    await asyncio.wait_for(refused.wait(), 10)
    assert len(sent) < most
    for n in range(most):
        assert await line.chunk() == piece(n)
    assert await line.chunk() == b""


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(door):
    async with listening(application(door), timeout_keep_alive=0.1) as here:
        idle, busy = [Line(*await asyncio.open_connection("127.0.0.1", here.port)) for _ in range(2)]
        await idle.ask(b"x")
        await busy.ask(b"x")
        door.say = door.wait_and_echo
        busy.send(request(b"y"))
        assert await idle.closed() == b""
        await asyncio.sleep(0.3)
        door.go_on.set()
        assert (await busy.answer())[2] == b"short:y"
        assert await busy.closed() == b""
        await idle.close()
        await busy.close()


async def test_what_is_open_when_the_server_ends_is_answered_to_its_end(server, connect, door):
    door.say = door.stream
    streams, idle = [await connect() for _ in range(3)], await connect()
    for line in streams:
        line.send(request(b""))
        await line.head()
        assert await line.chunk() == b"first"
    await until(lambda: len(server.connections) == 4)
    server.shut_down()
    assert await idle.closed() == b""
    assert not server.task.done()
    door.go_on.set()
    for line in streams:
        assert [await line.chunk(), await line.chunk()] == [b"last", b""]
        assert await line.closed() == b""
    await asyncio.wait_for(asyncio.shield(server.task), 10)
    assert (door.answered, door.left) == (3, 0)


async def test_what_takes_too_long_when_the_server_ends_is_cut(door):
    async with listening(application(door), timeout_graceful_shutdown=1) as here:
        door.say = door.stream
        line = Line(*await asyncio.open_connection("127.0.0.1", here.port))
        line.send(request(b""))
        await line.head()
        assert await line.chunk() == b"first"
        here.shut_down()
        assert await line.closed() == b""
        await until(lambda: door.left == 1)
        await line.close()


async def test_tls_carries_both_ways(door, tmp_path):
    make_certificates(tmp_path)
    files = {"ssl_certfile": tmp_path / "server.pem", "ssl_keyfile": tmp_path / "server.key"}
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    async with listening(application(door), **files) as here:
        line = Line(*await asyncio.open_connection("127.0.0.1", here.port, ssl=trusting))
        assert (await line.ask(b"hello"))[2] == b"short:hello"
        line.send(b"GET /y HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await line.answer())[2] == b"long:GET:"
        door.say = door.stream
        door.go_on.set()
        assert (await line.ask(b""))[2] == b"firstlast"
        await line.close()
