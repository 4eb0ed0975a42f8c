"""The doors of ``/v1/files`` and ``/v1/batches``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async

from api.authentication import new_key
from api.openapi.views import document
from jobs import batches, files
from jobs.models import Batch, BatchStatus, FileChunk, StoredFile
from tests.api.callers import caller
from tests.api.test_openapi import check

CHAT = "/v1/chat/completions"
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}\n'
EXPIRES = "expires_after"
OUTPUT = "output_expires_after"
make = sync_to_async(new_key)


@pytest.fixture(scope="module")
def schema() -> Any:
    document.cache_clear()
    return json.loads(document())


async def upload(client: httpx.AsyncClient, headers: dict[str, str], data: bytes = LINE, **form: Any) -> Any:
    form = {"purpose": "batch", **form}
    return await client.post("/v1/files", files={"file": ("in.jsonl", data)}, data=form, headers=headers)


async def open_batch(client: httpx.AsyncClient, headers: dict[str, str], **changes: Any) -> Any:
    file = await upload(client, headers)
    body = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h", **changes}
    return await client.post("/v1/batches", json=body, headers=headers)


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_a_file_comes_back_as_it_was_sent(serve, schema):
    ann = await caller()
    client = await serve()
    data = LINE * 40_000  # several pieces, and more than Django keeps in memory
    made = check(schema, "/v1/files", await upload(client, ann, data), "post").json()
    assert (made["object"], made["bytes"], made["filename"]) == ("file", len(data), "in.jsonl")
    assert made["expires_at"] - made["created_at"] == 7 * 86400
    path = f"/v1/files/{made['id']}"
    assert check(schema, "/v1/files/{file}", await client.get(path, headers=ann)).json() == made
    content = await client.get(f"{path}/content", headers={**ann, "Accept": "application/binary"})
    assert content.content == data
    assert content.headers["content-length"] == str(len(data))
    page = check(schema, "/v1/files", await client.get("/v1/files", headers=ann)).json()
    assert (page["data"], page["has_more"], page["last_id"]) == ([made], False, made["id"])
    gone = check(schema, "/v1/files/{file}", await client.delete(path, headers=ann), "delete").json()
    assert gone == {"id": made["id"], "object": "file", "deleted": True}
    assert refused(await client.delete(path, headers=ann))[:2] == (404, "file_not_found")
    assert await FileChunk.objects.acount() == 0


async def test_a_file_that_is_being_deleted_is_gone_and_does_not_break_off(serve):
    ann = await caller()
    client = await serve()
    file = (await upload(client, ann)).json()["id"]
    await FileChunk.objects.filter(file_id=file).adelete()  # as far as somebody else's DELETE has come
    assert refused(await client.get(f"/v1/files/{file}/content", headers=ann))[:2] == (404, "file_not_found")


async def test_keys_see_their_own_files_and_batches_only(serve):
    ann, bob, boss = await caller(), await caller("bob"), await caller("boss", staff=True)
    client = await serve()
    batch = (await open_batch(client, ann)).json()
    for other in (bob, boss):
        assert (await client.get("/v1/files", headers=other)).json()["data"] == []
        assert (await client.get("/v1/batches", headers=other)).json()["data"] == []
        for path in (f"/v1/files/{batch['input_file_id']}", f"/v1/files/{batch['input_file_id']}/content"):
            assert refused(await client.get(path, headers=other))[:2] == (404, "file_not_found")
        path = f"/v1/batches/{batch['id']}"
        assert refused(await client.get(path, headers=other))[:2] == (404, "batch_not_found")
        assert refused(await client.post(f"{path}/cancel", headers=other))[:2] == (404, "batch_not_found")
        body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        answer = await client.post("/v1/batches", json=body, headers=other)
        assert refused(answer) == (404, "file_not_found", "input_file_id")
    for unknown in ("x", "file-" + "0" * 32, "%00"):
        assert (await client.get(f"/v1/files/{unknown}", headers=ann)).status_code == 404
        assert (await client.get(f"/v1/batches/{unknown}", headers=ann)).status_code == 404
    assert (await client.get("/v1/files")).status_code == (await client.get("/v1/batches")).status_code == 401


async def test_a_stranger_is_turned_away_before_the_file_is_read(serve):
    client = await serve()
    read = 0

    async def body():
        nonlocal read
        for _ in range(50):
            read += 1
            yield b"x" * 100_000

    answer = await client.post("/v1/files", content=body(), headers={"Authorization": "Bearer sk-gt-wrong"})
    assert refused(answer)[:2] == (401, "invalid_api_key")
    assert read == 0


@pytest.mark.parametrize(
    ("parts", "form", "expected"),
    [
        ({"file": LINE}, {}, (400, "missing_required_parameter", "purpose")),
        ({"file": LINE}, {"purpose": "fine-tune"}, (400, "invalid_value", "purpose")),
        ({"file": LINE}, {"purpose": "batch", "colour": "red"}, (400, "unknown_parameter", "colour")),
        ({"other": LINE}, {"purpose": "batch"}, (400, "invalid_value", "file")),
        ({"file": b""}, {"purpose": "batch"}, (400, "invalid_value", "file")),
        ({"file": b"x" * 2_000_001}, {"purpose": "batch"}, (413, "file_too_large", "file")),
        ({"file": LINE}, {"purpose": "batch", EXPIRES + "[anchor]": "x"}, (400, "invalid_value", EXPIRES)),
        ({"file": LINE}, {"purpose": "batch", EXPIRES + "[seconds]": "9"}, (400, "invalid_value", EXPIRES)),
    ],
)  # fmt: skip
async def test_a_bad_upload_is_refused_and_nothing_is_kept(serve, settings, parts, form, expected):
    settings.FILE_BYTES = 2_000_000
    ann = await caller()
    client = await serve()
    sent = {name: ("in.jsonl", data) for name, data in parts.items()}
    assert refused(await client.post("/v1/files", files=sent, data=form, headers=ann)) == expected
    assert await StoredFile.objects.acount() == await FileChunk.objects.acount() == 0


async def test_an_upload_must_be_a_form_with_one_file(serve, settings):
    ann = await caller()
    client = await serve()
    assert refused(await client.post("/v1/files", json={}, headers=ann))[:2] == (
        415,
        "unsupported_media_type",
    )
    two = [("file", ("a", LINE)), ("file", ("b", LINE))]
    answer = await client.post("/v1/files", files=two, data={"purpose": "batch"}, headers=ann)
    assert refused(answer) == (400, "invalid_value", "file")
    none = {"purpose": (None, "batch")}
    answer = await client.post("/v1/files", files=none, headers=ann)
    assert refused(answer) == (400, "missing_required_parameter", "file")
    kind = {"Content-Type": "multipart/form-data"}
    assert refused(await client.post("/v1/files", content=b"x", headers={**ann, **kind}))[0] == 400
    assert await StoredFile.objects.acount() == 0
    settings.MAX_BODY_BYTES = settings.FILE_BYTES = 10
    answer = await upload(client, ann, b"x" * 100_000)
    assert refused(answer)[:2] == (413, "request_too_large")
    answer = await client.post("/jobs", content=b"x" * 100, headers=ann)
    assert refused(answer)[:2] == (413, "request_too_large")


async def test_a_key_with_enough_files_stores_no_more(serve, settings):
    settings.FILES_PER_KEY_BYTES = len(LINE)
    ann, bob = await caller(), await caller("bob")
    client = await serve()
    for _ in range(2):
        assert (await upload(client, ann)).status_code == 200
    assert refused(await upload(client, ann))[:2] == (400, "file_storage_full")
    assert (await upload(client, bob)).status_code == 200


async def test_a_file_may_be_kept_for_less_and_is_gone_then(serve):
    ann = await caller()
    client = await serve()
    more: dict[str, Any] = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = (await upload(client, ann, **more)).json()
    assert file["expires_at"] - file["created_at"] == 3600
    await StoredFile.objects.aupdate(expires_at="2000-01-01T00:00:00Z")
    assert (await client.get(f"/v1/files/{file['id']}", headers=ann)).status_code == 404
    assert (await client.get("/v1/files", headers=ann)).json()["data"] == []


async def test_a_batch_is_made_shown_and_cancelled(serve, schema):
    ann = await caller()
    client = await serve()
    made = check(schema, "/v1/batches", await open_batch(client, ann, metadata={"a": "b"}), "post").json()
    assert (made["status"], made["metadata"], made["endpoint"]) == ("validating", {"a": "b"}, CHAT)
    assert made["expires_at"] - made["created_at"] == 86400
    path = f"/v1/batches/{made['id']}"
    assert check(schema, "/v1/batches/{batch}", await client.get(path, headers=ann)).json() == made
    file = f"/v1/files/{made['input_file_id']}"
    answer = check(schema, "/v1/files/{file}", await client.delete(file, headers=ann), "delete")
    assert refused(answer)[:2] == (400, "file_in_use")
    for _ in range(2):
        answer = await client.post(f"{path}/cancel", headers=ann)
        told = check(schema, "/v1/batches/{batch}/cancel", answer, "post").json()
        assert (told["status"], bool(told["cancelling_at"])) == ("cancelling", True)
    await sync_to_async(_turn)()
    told = (await client.get(path, headers=ann)).json()
    assert (told["status"], bool(told["cancelled_at"]), told["output_file_id"]) == ("cancelled", True, None)
    assert (await client.post(f"{path}/cancel", headers=ann)).json()["status"] == "cancelled"
    await Batch.objects.aupdate(status=BatchStatus.COMPLETED)
    assert refused(await client.post(f"{path}/cancel", headers=ann))[:2] == (400, "batch_has_ended")
    assert (await client.delete(file, headers=ann)).status_code == 200


def _turn() -> None:
    from jobs import tasks

    tasks.batches()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"endpoint": "/v1/images"}, (400, "invalid_value", "endpoint")),
        ({"completion_window": "1h"}, (400, "invalid_value", "completion_window")),
        ({"input_file_id": "file-x"}, (404, "file_not_found", "input_file_id")),
        ({"input_file_id": 5}, (400, "invalid_value", "input_file_id")),
        ({"metadata": {"a": 1}}, (400, "invalid_value", "metadata")),
        ({"metadata": {str(n): "" for n in range(17)}}, (400, "invalid_value", "metadata")),
        ({"metadata": {"a": "b" * 513}}, (400, "invalid_value", "metadata")),
        ({"metadata": {"a": "\0"}}, (400, "invalid_value", "metadata")),
        ({"colour": "red"}, (400, "unknown_parameter", "colour")),
        ({OUTPUT: {"anchor": "ended_at", "seconds": 3600}}, (400, "invalid_value", OUTPUT)),
        ({OUTPUT: {"anchor": "created_at", "seconds": 3599}}, (400, "invalid_value", OUTPUT)),
        ({OUTPUT: {"anchor": "created_at"}}, (400, "missing_required_parameter", OUTPUT)),
        ({OUTPUT: {"anchor": "created_at", "seconds": 3600, "x": 1}}, (400, "unknown_parameter", OUTPUT)),
    ],
)
async def test_a_bad_batch_is_refused(serve, changes, expected):
    ann = await caller()
    client = await serve()
    status, code, param = refused(await open_batch(client, ann, **changes))
    assert (status, code, (param or "").partition(".")[0]) == expected
    assert await Batch.objects.acount() == 0


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/responses", "/v1/embeddings"])
async def test_a_batch_may_be_for_each_path_that_takes_a_models_time(serve, endpoint):
    ann = await caller()
    client = await serve()
    assert (await open_batch(client, ann, endpoint=endpoint)).json()["endpoint"] == endpoint


async def test_a_batch_is_told_how_long_its_output_is_kept(serve):
    ann = await caller()
    client = await serve()
    await open_batch(client, ann, **{OUTPUT: {"anchor": "created_at", "seconds": 7200}})
    assert (await Batch.objects.aget()).output_seconds == 7200


async def test_what_a_batch_wrote_is_no_input(serve):
    ann = await caller()
    client = await serve()
    id_ = (await upload(client, ann)).json()["id"]
    await StoredFile.objects.aupdate(purpose=files.BATCH_OUTPUT)
    assert refused(await open_batch(client, ann, input_file_id=id_)) == (
        400,
        "invalid_value",
        "input_file_id",
    )


async def test_a_key_has_a_few_batches_open_at_a_time(serve, settings):
    settings.BATCHES_PER_KEY = 1
    ann = await caller()
    client = await serve()
    assert (await open_batch(client, ann)).status_code == 200
    answer = await open_batch(client, ann)
    assert refused(answer)[:2] == (429, "too_many_batches")
    assert answer.headers["x-should-retry"] == "false"
    await Batch.objects.aupdate(status=BatchStatus.COMPLETED)
    assert (await open_batch(client, ann)).status_code == 200


async def test_lists_come_in_pages(serve):
    row, secret = await make("ann")
    ann = {"Authorization": f"Bearer {secret}"}
    client = await serve()
    ids = [(await upload(client, ann)).json()["id"] for _ in range(3)]
    made = []
    for _ in range(3):
        made.append(await sync_to_async(batches.create)(row.pk, ids[0], CHAT, {}))
        await asyncio.sleep(0.002)  # ids of one millisecond have no order
    for path, expected in (("/v1/files", ids), ("/v1/batches", [b.id for b in made])):
        first = (await client.get(path, params={"limit": 2}, headers=ann)).json()
        assert [f["id"] for f in first["data"]] == expected[:0:-1]
        assert first["has_more"]
        rest = (await client.get(path, params={"after": first["last_id"]}, headers=ann)).json()
        assert ([f["id"] for f in rest["data"]], rest["has_more"]) == (expected[:1], False)
        up = (await client.get(path, params={"order": "asc", "after": expected[0]}, headers=ann)).json()
        assert [f["id"] for f in up["data"]] == expected[1:]
        for wrong in ({"limit": "0"}, {"limit": "x"}, {"after": "\0"}, {"order": "up"}, {"colour": "red"}):
            answer = await client.get(path, params=wrong, headers=ann)
            assert (answer.status_code, refused(answer)[2]) == (400, next(iter(wrong)))
    found = (await client.get("/v1/files", params={"purpose": "batch_output"}, headers=ann)).json()
    assert found["data"] == []
