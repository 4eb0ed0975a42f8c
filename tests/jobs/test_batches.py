"""Batches, turn by turn: what is sent, what comes back, and that each happens once."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from api import usage
from api.authentication import new_key, revoke
from api.models import ApiKey, Usage
from jobs import batches, files, lull, tasks
from jobs.lifecycle import Move, move
from jobs.models import Batch, BatchLine, BatchStatus, FileChunk, Job, JobState, StoredFile
from tests.jobs.deferred import a_node, ago, inbox, queued, report, route
from tests.jobs.scripted import done

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = "/v1/completions"


@pytest.fixture
def key(wire) -> ApiKey:
    return new_key("ann")[0]


def line(custom_id: str, body: Any = None, **changes: Any) -> bytes:
    body = {"model": "m", "prompt": "secret"} if body is None else body
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": TEXT, "body": body, **changes}
    ).encode()


def stored(key: ApiKey, data: bytes) -> StoredFile:
    file = files.begin(key.pk, "in.jsonl", files.BATCH)
    files.append(file, data)
    files.finish(file, 3600)
    return file


def begun(key: ApiKey, *lines: bytes) -> Batch:
    return batches.create(key.pk, stored(key, b"\n".join(lines)).id, TEXT, {})


def turn(batch: Batch) -> Batch:
    async_to_sync(batches.turn)()
    batch.refresh_from_db()
    return batch


def complete(job_id: str, body: bytes = b'{"choices": [],\n "id": "x"}') -> None:
    """As a node's report would, without the node."""
    job = Job.objects.get(pk=job_id)
    assert move(job, Move.PLACE)
    columns: dict[str, Any] = {"result": body, "prompt_tokens": 3, "completion_tokens": 7}
    assert move(job, Move.COMPLETE, finished_at=timezone.now(), http_status=200, **columns)


def entries(file_id: str) -> list[dict[str, Any]]:
    return [json.loads(text) for _, text in files.lines(file_id)]


def read(file_id: str) -> dict[str, Any]:
    return {entry["custom_id"]: entry for entry in entries(file_id)}


def under_way(batch: Batch) -> list[str]:
    return list(batch.lines.values_list("job_id", flat=True))


def test_a_batch_goes_through_its_states_and_answers_every_line_once(key, wire):
    batch = begun(key, line("a"), b"", line("b"), line("c", {"model": "m", "prompt": "x", "n": "2"}))
    assert batch.status == BatchStatus.VALIDATING
    assert turn(batch).status == BatchStatus.IN_PROGRESS
    assert (batch.total, batch.failed) == (3, 1)
    assert queued(wire) == Job.objects.count() == 2
    assert {(j.key_id, j.asynchronous, j.state) for j in Job.objects.all()} == {(key.pk, True, "pending")}
    turn(batch)
    assert Job.objects.count() == 2  # nothing is sent twice
    first, second = under_way(batch)
    complete(first)
    assert turn(batch).completed == 1
    assert Job.objects.get(pk=first).result is None  # it lies in the file now
    assert not files.of(key.pk).filter(purpose=files.BATCH_OUTPUT).exists()  # not before it is whole
    complete(second)
    assert turn(batch).status == BatchStatus.COMPLETED
    assert (batch.total, batch.completed, batch.failed) == (3, 2, 1)
    assert (batch.prompt_tokens, batch.completion_tokens) == (6, 14)
    assert {batch.output_file, batch.error_file} == set(
        files.of(key.pk).filter(purpose=files.BATCH_OUTPUT).values_list("pk", flat=True)
    )
    answers = read(batch.output_file)
    assert answers["a"] == {
        "id": f"batch_req_{first}",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": first, "body": {"choices": [], "id": "x"}},
        "error": None,
    }
    assert answers.keys() == {"a", "b"}
    refused = read(batch.error_file)["c"]
    assert (refused["line"], refused["response"]["status_code"], refused["error"]) == (4, 400, None)
    assert refused["response"]["body"]["error"]["param"] == "n"
    assert turn(batch).version == Batch.objects.get().version  # it is at rest


def test_a_node_does_the_work_and_the_key_pays(key, wire):
    node = a_node(wire)
    batch = begun(key, line("a"))
    turn(batch)
    route(Job.objects.get())
    (work,) = inbox(wire, node)
    assert json.loads(work.body) == {"model": "m", "prompt": "secret"}
    report(node, work, done(work, body=b'{"id":"x"}'))
    assert turn(batch).status == BatchStatus.COMPLETED
    row = Usage.objects.get(key=key)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 3, 7)


def test_only_so_many_lines_are_under_way(key, settings):
    settings.BATCH_UNDER_WAY = 2
    batch = begun(key, *(line(str(n)) for n in range(5)))
    turn(batch)
    assert len(under_way(turn(batch))) == Job.objects.count() == 2
    complete(under_way(batch)[0])
    assert len(under_way(turn(batch))) == 2
    assert Job.objects.count() == 3
    for _ in range(3):
        for job_id in under_way(batch):
            complete(job_id)
        turn(batch)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 5)
    assert read(batch.output_file).keys() == set("01234")


def test_many_batches_share_what_may_be_under_way(key, settings):
    settings.BATCH_UNDER_WAY = 2
    for n in range(6):
        last = begun(key, *(line(f"{n}-{k}") for k in range(3)))
    turn(last)
    turn(last)
    assert [b.lines.count() for b in Batch.objects.all()] == [1] * 6


def test_lines_run_behind_everything_else(key):
    turn(begun(key, line("a")))
    assert Job.objects.get().priority == batches.PRIORITY < 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], [(None, "empty_file", None)]),
        ([b"", b"  "], [(None, "empty_file", None)]),
        ([b"{", line("a")], [(1, "invalid_json", None)]),
        ([b'{"custom_id":"\xff"}'], [(1, "invalid_json", None)]),
        ([b"[]"], [(1, "invalid_value", None)]),
        ([line("a"), b"", line("a")], [(3, "duplicate_custom_id", "custom_id")]),
        ([b'{"custom_id":"a","method":"POST","url":"/v1/completions"}'],
         [(1, "missing_required_parameter", "body")]),
        ([line("a", method="GET")], [(1, "invalid_value", "method")]),
        ([line("a", url="/v1/chat/completions")], [(1, "invalid_value", "url")]),
        ([line("a", body=[1])], [(1, "invalid_value", "body")]),
        ([line(7)], [(1, "invalid_value", "custom_id")]),  # type: ignore[arg-type]
        ([line("")], [(1, "invalid_value", "custom_id")]),
        ([line("a\0")], [(1, "invalid_value", "custom_id")]),
        ([line(str(n)) for n in range(4)], [(4, "too_many_lines", None)]),
    ],
)  # fmt: skip
def test_a_file_with_a_wrong_line_fails_and_nothing_is_sent(key, settings, lines, said):
    settings.BATCH_LINES = 3
    batch = turn(begun(key, *lines))
    assert batch.status == BatchStatus.FAILED
    assert [(p["line"], p["code"], p["param"]) for p in batch.errors] == said
    assert batch.ended_at
    assert Job.objects.count() == 0


def test_a_mark_at_the_beginning_of_the_file_is_no_mistake(key):
    batch = turn(begun(key, b"\xef\xbb\xbf" + line("a")))
    assert (batch.status, batch.errors) == (BatchStatus.IN_PROGRESS, [])
    assert len(under_way(batch)) == 1


def test_a_line_longer_than_any_request_fails_the_batch(key, settings):
    settings.MAX_BODY_BYTES = 100
    batch = turn(begun(key, line("a"), line("b", {"prompt": "x" * 3 * files.PIECE_BYTES})))
    assert (batch.status, batch.errors[0]["line"]) == (BatchStatus.FAILED, 2)


def test_lines_that_lie_across_pieces_are_read_whole(key, settings):
    settings.BATCH_UNDER_WAY = 1
    texts = [str(n) * 700_000 for n in range(4)]
    batch = begun(key, *(line(t[0], {"model": "m", "prompt": t}) for t in texts))
    for _ in texts:
        turn(batch)
        (job_id,) = under_way(batch)
        assert json.loads(bytes(Job.objects.get(pk=job_id).request or b""))["prompt"] in texts
        complete(job_id)
    turn(batch)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 4)


def test_two_turns_from_the_same_reading_send_once(key):
    """As two workers at once: the second acts on what it read before the first wrote."""
    batch = begun(key, line("a"), line("b"))
    batches._validate(batch)
    one, two = (Batch.objects.get(pk=batch.pk) for _ in range(2))
    assert len(batches._send(one, 64)) == 2
    with pytest.raises(batches._Moved):
        batches._send(two, 64)
    assert Job.objects.count() == BatchLine.objects.count() == 2


def test_workers_at_once_answer_every_line_once(key, settings):
    settings.BATCH_UNDER_WAY = 3
    batch = begun(key, *(line(str(n)) for n in range(12)))

    def work() -> None:
        try:
            for _ in range(30):
                async_to_sync(batches.turn)()
                for job_id in under_way(batch):
                    with contextlib.suppress(AssertionError):  # another completes it
                        complete(job_id)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for _ in range(3)]:
            future.result()
    batch.refresh_from_db()
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 12, 0)
    assert sorted(e["custom_id"] for e in entries(batch.output_file)) == sorted(map(str, range(12)))
    assert Job.objects.count() == 12


def test_answers_are_written_once_by_two_who_saw_them(key):
    batch = begun(key, line("a"))
    turn(batch)
    complete(under_way(batch)[0])
    one, two = (Batch.objects.get(pk=batch.pk) for _ in range(2))
    lines = list(BatchLine.objects.all())
    assert batches._collect(one) == 1
    BatchLine.objects.bulk_create(lines)  # as the other still sees them
    Job.objects.update(result=b"{}")
    with pytest.raises(batches._Moved):
        batches._collect(two)
    assert FileChunk.objects.filter(file_id=one.output_file).count() == 1
    assert Batch.objects.get().completed == 1


def test_what_failed_is_told_as_its_caller_would_have_been(key):
    batch = begun(key, line("a"), line("b"), line("c"), line("d"), line("e"))
    turn(batch)
    engine, unknown, lost, gone, dropped = under_way(batch)
    job = Job.objects.get(pk=engine)
    refusal = b'{"error":{"message":"too much","param":"n","code":400}}'
    move(job, Move.FAIL, error_code="rejected_by_engine", http_status=400, result=refusal)
    move(Job.objects.get(pk=unknown), Move.FAIL, error_code="unknown_model", error_message="no node")
    move(Job.objects.get(pk=lost), Move.FAIL, error_code="all_tried", error_message="they died")
    Job.objects.filter(pk=gone).delete()
    complete(dropped)
    Job.objects.filter(pk=dropped).update(result=None)
    assert turn(batch).status == BatchStatus.COMPLETED
    assert (batch.completed, batch.failed, batch.output_file) == (0, 5, "")
    told = read(batch.error_file)
    found = {
        id_: (e["response"]["status_code"], e["response"]["body"]["error"]["code"])
        for id_, e in told.items()
        if e["response"]
    }
    assert found == {
        "a": (400, "rejected_by_engine"),
        "b": (404, "model_not_found"),
        "c": (502, "upstream_failed"),
    }
    assert {told[id_]["error"]["code"] for id_ in "de"} == {"result_dropped"}


def test_cancelling_stops_what_is_under_way_and_names_the_rest(key, wire, settings):
    settings.BATCH_UNDER_WAY = 2
    batch = begun(key, *(line(str(n)) for n in range(5)))
    turn(batch)
    first, second = under_way(batch)
    complete(first)
    assert batches.cancel(batch)
    assert batches.cancel(batch)
    assert batch.status == BatchStatus.CANCELLING
    turn(batch)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.CANCELLED, 1, 4)
    assert Job.objects.get(pk=second).state == JobState.CANCELLED
    assert read(batch.output_file).keys() == {"0"}
    told = read(batch.error_file)
    assert told.keys() == set("1234")
    assert {e["error"]["code"] for e in told.values()} == {"batch_cancelled"}
    assert not batches.cancel(batch)


def test_a_batch_that_was_not_looked_at_yet_can_be_cancelled(key):
    batch = begun(key, line("a"))
    assert batches.cancel(batch)
    assert turn(batch).status == BatchStatus.CANCELLED
    assert (batch.total, batch.failed, Job.objects.count()) == (0, 0, 0)


def test_after_its_window_a_batch_expires(key, settings):
    settings.BATCH_UNDER_WAY = 1
    batch = begun(key, line("a"), line("b"))
    turn(batch)
    Batch.objects.update(expires_at=ago(seconds=1))
    turn(batch)
    assert (batch.status, batch.failed) == (BatchStatus.EXPIRED, 2)
    assert {e["error"]["code"] for e in read(batch.error_file).values()} == {"batch_expired"}
    assert Job.objects.get().state == JobState.CANCELLED


def test_a_revoked_key_ends_its_batches(key):
    batch = turn(begun(key, line("a")))
    revoke(key)
    turn(batch)
    turn(batch)
    assert (batch.status, batch.errors[0]["code"]) == (BatchStatus.CANCELLED, "invalid_api_key")
    assert Job.objects.get().state == JobState.CANCELLED


def test_a_used_up_budget_holds_a_batch_back_until_there_is_more(key, settings):
    ApiKey.objects.update(tokens_per_day=100, requests_per_minute=1)
    Usage.objects.create(key=key, model="m", day=timezone.now().date(), prompt_tokens=100)
    assert usage.spent([key.pk])[key.pk].day_tokens == 100
    batch = begun(key, line("a"), line("b"))
    turn(batch)
    assert (turn(batch).status, Job.objects.count()) == (BatchStatus.IN_PROGRESS, 0)
    ApiKey.objects.update(tokens_per_day=101)
    turn(batch)
    assert Job.objects.count() == 2  # whatever the requests a minute


def test_a_model_that_the_key_may_not_use_is_refused_line_by_line(key):
    ApiKey.objects.update(allowed_models=["other"])
    batch = begun(key, line("a"))
    turn(batch)
    assert batch.status == BatchStatus.COMPLETED
    assert read(batch.error_file)["a"]["response"]["status_code"] == 404


def test_streams_are_refused(key):
    batch = turn(begun(key, line("a", {"model": "m", "prompt": "x", "stream": True})))
    error = read(batch.error_file)["a"]["response"]["body"]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "stream")


def counted(wire) -> dict[str, int]:
    """Lines of batches by outcome, as the metrics have them."""
    totals = {tuple(json.loads(series)): int(n) for series, n in wire.hgetall("gt:metrics").items()}
    return {series[1]: n for series, n in totals.items() if series[0] == "batch_lines"}


def test_lines_are_counted_by_how_they_ended_once_each(key, wire, settings):
    settings.BATCH_UNDER_WAY = 4
    lines = [line(c) for c in "abcdefg"]
    batch = begun(key, *lines[:3], line("x", {"model": "m", "prompt": "x", "n": "2"}), *lines[3:])
    turn(batch)
    first, second, *_ = under_way(batch)
    complete(first)
    job = Job.objects.get(pk=second)
    assert move(job, Move.PLACE)
    assert move(job, Move.FAIL, finished_at=timezone.now(), error_code="upstream_failed")
    turn(batch)
    assert counted(wire) == {"completed": 1, "failed": 1, "refused": 1}
    batches.cancel(batch)
    for _ in range(4):
        turn(batch)
    assert batch.status == BatchStatus.CANCELLED
    assert counted(wire) == {"completed": 1, "failed": 1, "refused": 1, "cancelled": 5}
    assert sum(counted(wire).values()) == batch.completed + batch.failed == batch.total


def test_a_step_that_is_not_committed_counts_nothing(key, wire):
    batch = begun(key, line("x", {"model": "m", "prompt": "x", "n": "2"}), line("a"))
    batches._validate(batch)
    old = Batch.objects.get(pk=batch.pk)
    batches._send(batch, 64)
    with pytest.raises(batches._Moved):
        batches._send(old, 64)
    assert counted(wire) == {"refused": 1}


def test_what_a_batch_writes_may_be_kept_for_less(key):
    file = stored(key, line("a"))
    batch = batches.create(key.pk, file.id, TEXT, {}, output_seconds=3600)
    turn(batch)
    complete(under_way(batch)[0])
    before = timezone.now()
    turn(batch)
    output = StoredFile.objects.get(pk=batch.output_file)
    assert 3600 <= (output.expires_at - before).total_seconds() < 3700
    usual = begun(key, line("a"))
    turn(usual)
    complete(under_way(usual)[0])
    turn(usual)
    kept = StoredFile.objects.get(pk=usual.output_file)
    assert (kept.expires_at - kept.created_at).total_seconds() > 6 * 86400


def test_one_batch_that_cannot_go_on_does_not_hold_up_the_others(key, caplog):
    broken, good = begun(key, line("a")), begun(key, line("b"))
    turn(broken)
    Batch.objects.filter(pk=broken.pk).update(ends_as="nonsense", status=BatchStatus.FINALIZING)
    BatchLine.objects.filter(batch=broken).delete()
    complete(under_way(good)[0])
    assert turn(good).status == BatchStatus.COMPLETED
    assert "cannot be moved on" in caplog.text
    assert "secret" not in caplog.text


def test_what_is_over_goes_and_what_a_batch_needs_stays(key):
    used, unused, broken, young = (stored(key, line("a")) for _ in range(4))
    batch = batches.create(key.pk, used.id, TEXT, {})
    over = StoredFile.objects.filter(pk__in=[used.pk, unused.pk])
    over.update(expires_at=ago(seconds=1))
    StoredFile.objects.filter(pk=broken.pk).update(complete=False, created_at=ago(hours=2))
    assert files.tidy() == 2
    assert set(StoredFile.objects.values_list("pk", flat=True)) == {used.pk, young.pk}
    assert FileChunk.objects.count() == 2
    assert files.is_in_use(used.pk)
    Batch.objects.filter(pk=batch.pk).update(status=BatchStatus.FAILED, ended_at=ago(days=8))
    assert tasks.tidy()["files"] == 1
    assert Batch.objects.count() == 0


def test_the_clock_asks_for_a_turn(wire):
    tasks.enqueue_periodic()
    assert wire.exists("rq:job:batches")
    assert tasks.batches() == {"sent": 0, "answered": 0, "ended": 0}


def test_while_there_is_no_batch_the_clock_asks_seldom_and_at_once_when_there_is_one(wire, key, settings):
    def asked() -> bool:
        wire.delete("gt:due:batches", "rq:job:batches", "rq:queue:maintenance")
        tasks.enqueue_periodic()
        return bool(wire.exists("rq:job:batches"))

    assert asked()
    tasks.batches()
    assert not asked()
    assert 0 < wire.pttl("gt:batches:lull") <= settings.SWEEP_SECONDS * 1000
    batches.create(key.pk, stored(key, line("a")).id, TEXT, {})
    assert asked()
    tasks.batches()
    assert asked()  # it is open


def test_a_batch_that_is_made_while_a_turn_looks_is_not_forgotten(wire, key, monkeypatch):
    file = stored(key, line("a"))
    looked = QuerySet.exists

    def late(rows):
        found = looked(rows)
        batches.create(key.pk, file.id, TEXT, {})
        return found

    monkeypatch.setattr(QuerySet, "exists", late)
    assert lull.found()
    assert not lull.known()


def test_a_batch_is_made_though_redis_is_away(wire, key):
    file = stored(key, line("a"))
    wire.execute_command("ACL", "SETUSER", "default", "-del")
    try:
        batch = batches.create(key.pk, file.id, TEXT, {})
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert Batch.objects.get() == batch
