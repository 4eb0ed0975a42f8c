"""Batches by the official client: a file in, a file out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest

from tests.journeys.cluster import MODEL, Cluster

CHAT: Final = "/v1/chat/completions"


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key, max_retries=0) as made:
        yield made


def line(custom_id: str, text: str, **more: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def ended(cluster: Cluster, client: openai.OpenAI, batch_id: str) -> Any:
    ends = ("completed", "failed", "expired", "cancelled")
    cluster.until(lambda: client.batches.retrieve(batch_id).status in ends, "the batch ends", 40)
    return client.batches.retrieve(batch_id)


def read(client: openai.OpenAI, file_id: str) -> dict[str, Any]:
    text = client.files.content(file_id).text
    return {entry["custom_id"]: entry for entry in map(json.loads, text.splitlines())}


def test_a_file_of_requests_becomes_a_file_of_answers(cluster, client):
    asked = [line(f"q{n}", f"word{n} other") for n in range(40)]
    asked += [line("hot", "x", temperature=9), line("long", "x", max_tokens=1_000_000)]
    file = client.files.create(file=("asked.jsonl", b"".join(asked)), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("asked.jsonl", sum(map(len, asked)), "batch")
    assert client.files.content(file.id).read() == b"".join(asked)
    assert [f.id for f in client.files.list(purpose="batch")] == [file.id]
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"run": "1"}
    )
    assert (batch.status, batch.metadata) == ("validating", {"run": "1"})
    done = ended(cluster, client, batch.id)
    assert done.status == "completed", done
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (42, 40, 2)
    answers = read(client, done.output_file_id)
    assert answers.keys() == {f"q{n}" for n in range(40)}
    for n in range(40):
        response = answers[f"q{n}"]["response"]
        assert (response["status_code"], answers[f"q{n}"]["error"]) == (200, None)
        assert response["body"]["choices"][0]["message"]["content"] == f"word{n} other"
    assert done.usage.total_tokens == 40 * 4
    refused = read(client, done.error_file_id)
    hot, long = refused["hot"], refused["long"]
    assert (hot["line"], hot["response"]["status_code"]) == (41, 400)
    assert hot["response"]["body"]["error"]["param"] == "temperature"
    assert (long["line"], long["response"]["body"]["error"]["code"]) == (42, "rejected_by_engine")
    assert [b.id for b in client.batches.list(limit=1)] == [batch.id]
    for name in (file.id, done.output_file_id, done.error_file_id):
        assert client.files.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    cluster.until(lambda: cluster.slots_held() == 0, "the slots are back", 5)


def test_a_file_that_is_none_fails_with_its_lines(cluster, client):
    file = client.files.create(file=("bad.jsonl", line("a", "x") + b"{\n" + line("a", "y")), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    done = ended(cluster, client, batch.id)
    assert done.status == "failed"
    said = [(e.line, e.code) for e in done.errors.data]
    assert said == [(2, "invalid_json"), (3, "duplicate_custom_id")]


def test_a_batch_is_cancelled_and_keeps_what_was_answered(bare: Cluster):
    bare.agent_ready("slow", "--per-second", "4")
    with openai.OpenAI(base_url=f"{bare.url}/v1", api_key=bare.key, max_retries=0) as client:
        asked = line("first", "x", max_tokens=1)
        asked += b"".join(line(f"q{n}", "x", max_tokens=400) for n in range(200))
        file = client.files.create(file=("asked.jsonl", asked), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")

        def one_is_answered() -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return bool(counts and counts.completed)

        bare.until(one_is_answered, "one is answered", 20)
        with pytest.raises(openai.BadRequestError, match="has not ended reads"):
            client.files.delete(file.id)
        assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
        done = ended(bare, client, batch.id)
        assert (done.status, done.request_counts.completed) == ("cancelled", 1)
        assert read(client, done.output_file_id).keys() == {"first"}
        refused = read(client, done.error_file_id)
        assert len(refused) == 200
        assert {r["error"]["code"] for r in refused.values()} == {"batch_cancelled"}
        bare.until(lambda: bare.slots_held() == 0, "the engine has stopped", 10)
