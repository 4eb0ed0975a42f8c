"""The judge of the chaos journey finds what is wrong: a judge that finds nothing proves nothing."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any

import pytest

from tests.chaos import checks, metrics
from tests.chaos.client import Broken, ask
from tests.chaos.load import Load
from tests.chaos.record import Call, End, Kind
from tests.chaos.world import Span, World

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def name(number: int) -> str:
    """The id of a job."""
    return f"{number:012x}7{number:019x}"


def call(kind: Kind = Kind.CHAT_STREAM, end: End = End.COMPLETED, number: int = 1, **more: Any) -> Call:
    made = Call(number, kind, ["a.0", "a.1", "a.2"], 80, began=10.0, ended=12.0, job=name(number), end=end)
    for field, value in {"status": 200, **more}.items():
        setattr(made, field, value)
    return made


def row(number: int = 1, state: str = "completed", code: str = "", **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("request", "result", "node_id", "placed_at", "finished_at"))
    made = {"id": name(number), "state": state, "error_code": code, "asynchronous": False, "stream": True}
    return {**empty, **made, "attempt_count": 1, "created_at": NOW, **more}


def world(*spans: Span) -> World:
    made = World(None, None)  # type: ignore[arg-type]  # nothing runs: only the times of faults are asked
    made.spans = list(spans)
    return made


def wrong(where: World, calls: list[Call], rows: list[dict[str, Any]]) -> list[str]:
    found = checks.agreement(where, calls, {r["id"]: r for r in rows}) + checks.clients(where, calls)
    return [check.name for check in found if check.wrong]


@pytest.mark.parametrize(("deleted", "right"), [(True, True), (False, False)])
def test_a_result_is_gone_only_if_it_was_deleted(deleted, right):
    seen = call(Kind.JOB, End.OPEN, deleted=deleted)
    record = {"status": "completed", "result": None, "result_dropped": True}
    try:
        Load([1], "key", 1)._job_ended(seen, record)
    except TypeError as e:  # what a client makes of it that takes what it has
        seen.problems.append(str(e))
    assert (seen.end, not seen.problems) == (End.COMPLETED, right)


def test_a_result_that_is_there_is_looked_at_though_it_was_deleted():
    seen = call(Kind.JOB, End.OPEN, deleted=True)
    result = {"choices": [{"message": {"content": "a.0 a.1"}}]}
    record = {"status": "completed", "result": result, "result_dropped": False}
    Load([1], "key", 1)._job_ended(seen, record)
    assert seen.problems


# -- tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        ["a.0", " a.1", " a.1"],
        ["a.0", " a.2"],
        ["a.0", " b.1"],
        [" a.1"],
        ["a.0", " a.1", " a.2", " a.3"],
        ["a.0", " a."],
    ],
    ids=["doubled", "missing", "another's", "not from the start", "too many", "torn"],
)
def test_wrong_tokens_are_found(pieces):
    seen = call()
    for piece in pieces:
        seen.take_tokens(piece)
    assert seen.problems


def test_right_tokens_are_right():
    seen = call()
    for piece in ["a.0", " a.1", "", " a.2"]:
        seen.take_tokens(piece)
    assert not seen.problems


def test_an_id_that_changes_is_found():
    seen = call()
    seen.take_id("chatcmpl-" + name(15))
    assert seen.problems


def test_the_id_of_a_request_is_not_that_of_a_job():
    seen = call()
    seen.take_id("19a38ef96b6242af86517d8372d1b266")
    assert (seen.job, seen.problems) == (name(1), [])


# -- clients and ledger ----------------------------------------------------------------------------------


def test_a_true_story_has_nothing_wrong():
    calls = [call(), call(number=2, end=End.ERROR, code="upstream_failed"), call(number=3, end=End.LEFT)]
    rows = [row(), row(2, "failed", "upstream_failed"), row(3, "cancelled", "client_closed")]
    assert not wrong(world(), calls, rows)


@pytest.mark.parametrize(
    ("seen", "rows", "name"),
    [
        (call(), [], "the ledger knows every job that a client knows"),
        (call(), [row(state="running")], "every accepted job has one terminal state"),
        (call(), [row(state="failed", code="x")], "a job's end in the ledger is the one its client saw"),
        (
            call(end=End.ERROR, code="upstream_failed"),
            [row()],
            "a job's end in the ledger is the one its client saw",
        ),
        (call(), [row(), row(2)], "the ledger knows no job that no client asked for"),
        (call(end=End.CUT), [row()], "no connection broke but to a killed web process"),
        (
            call(),
            [row(result=b"{}")],
            "asynchronous results are right, and nothing else is stored",
        ),
    ],
)
def test_stories_that_differ_are_found(seen, rows, name):
    assert name in wrong(world(), [seen], rows)


def test_a_row_without_a_client_is_that_of_one_who_was_told_no_id():
    refused = call(number=2, end=End.ERROR, code="upstream_failed", job="")
    assert not wrong(world(), [refused], [row(7, "failed", "upstream_failed")])
    assert wrong(
        world(), [refused], [row(7, "failed", "upstream_failed"), row(8, "failed", "upstream_failed")]
    )


def test_what_was_refused_at_once_needs_no_row():
    refused = call(end=End.ERROR, code="no_workers", status=503)
    assert not wrong(world(), [refused], [])
    assert wrong(world(), [call(end=End.ERROR, code="upstream_failed")], [])


def test_a_killed_web_process_takes_the_records_of_its_last_moment_along():
    killed = Span("down", "web 80", 12.5, 16.0)
    assert not wrong(world(killed), [call()], [])
    assert not wrong(world(killed), [call(end=End.CUT, ended=12.6)], [])


@pytest.mark.parametrize(
    ("outcome", "number", "right"),
    [("done", 1, True), ("", 1, False), ("done", 2, False), ("done", 4, False)],
)
def test_attempts_end_with_their_job_and_are_counted(outcome, number, right):
    attempt = {"job_id": name(1), "number": number, "node_id": "n", "outcome": outcome}
    check = checks.tried(world(), [call()], {name(1): row()}, [attempt])
    assert bool(check.wrong) is not right


@pytest.mark.parametrize(("completed", "right"), [(3, True), (2, False), (4, False)])
def test_metrics_count_what_the_ledger_has(completed, right):
    rows = {name(n): row(n, finished_at=NOW) for n in range(3)}
    page = f'# TYPE x counter\ngputorrent_jobs_total{{model="m",state="completed"}} {completed}\n'
    assert bool(metrics.agreement(world(), page, rows).wrong) is not right


def test_metrics_may_miss_what_ended_as_something_broke():
    rows = {name(1): row(finished_at=datetime.datetime.now(datetime.UTC))}
    now = time.monotonic()
    assert metrics.agreement(world(), "nothing", rows).wrong
    assert not metrics.agreement(world(Span("down", "web 80", now, now)), "nothing", rows).wrong


def test_but_no_older_ones_and_no_others():
    assert wrong(world(Span("down", "web 80", 20.0, 24.0)), [call()], [])
    assert wrong(world(Span("down", "web 81", 12.5, 16.0)), [call()], [])
    assert wrong(world(Span("down", "web 80", 12.5, 16.0)), [call(Kind.JOB)], [])


def test_records_that_waited_for_the_database_die_with_their_web_process():
    away, killed = Span("PostgreSQL frozen", "database", 11.5, 14.5), Span("down", "web 80", 19.0, 23.0)
    assert not wrong(world(away, killed), [call()], [])
    assert wrong(world(Span("PostgreSQL frozen", "database", 2.0, 3.0), killed), [call()], [])


# -- the client ------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def piece(text: str) -> bytes:
    event = '{"id":"chatcmpl-' + name(1) + '","choices":[{"delta":{"content":"' + text + '"}}]}'
    return chunk(b"data: " + event.encode() + b"\n\n")


WHOLE = piece("a.0") + piece(" a.1") + piece(" a.2")
DONE, END = chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"
ERROR = chunk(b'data: {"error": {"code": "upstream_failed"}}\n\n')


async def answered(wire: bytes) -> Call:
    """What a client makes of these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        seen = call(end=End.OPEN, port=server.sockets[0].getsockname()[1])
        await Load([seen.port], "key", 1).make(seen)
    return seen


async def test_a_stream_that_ends_well_is_a_success():
    seen = await answered(HEAD + WHOLE + DONE + END)
    assert (seen.end, seen.problems) == (End.COMPLETED, [])


async def test_a_stream_that_ends_with_an_error_is_one():
    seen = await answered(HEAD + piece("a.0") + ERROR + END)
    assert (seen.end, seen.code, seen.problems) == (End.ERROR, "upstream_failed", [])


@pytest.mark.parametrize(
    "wire",
    [
        HEAD + WHOLE + END,
        HEAD + piece("a.0") + DONE + END,
        HEAD + piece("a.0") + ERROR + DONE + END,
        HEAD + WHOLE + DONE + piece(" a.0") + END,
        HEAD + chunk(b'data: {"error": {"code": "internal_error"}}\n\n') + END,
        b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\n{}",
    ],
    ids=["no end", "too short", "two ends", "after the end", "another error", "500", "503 without a code"],
)
async def test_what_no_client_may_see_is_found(wire):
    assert (await answered(wire)).problems


async def test_a_connection_that_breaks_is_told_from_one_that_was_never_there():
    assert (await answered(HEAD + piece("a.0"))).end == End.CUT
    with pytest.raises(Broken) as raised:
        async with ask(1, "GET", "/", "key"):
            pass
    assert not raised.value.sent
