from __future__ import annotations

import json

from worker_agent.translating import Renaming

JOB = "ab" * 16
CHAT = Renaming("ours", "theirs:8b", JOB, "/v1/chat/completions")


def test_the_request_goes_out_under_their_name_and_is_otherwise_as_it_was():
    body = b'{"model": "ours", "temperature": 0.10, "messages": [{"role":"user","content":"\\u00e9 ours"}]}'
    sent = CHAT.request(body)
    assert json.loads(sent) == {**json.loads(body), "model": "theirs:8b"}
    assert b"0.10" in sent
    assert b"\\u00e9 ours" in sent


def test_answers_come_back_under_ours_with_the_jobs_id():
    answer = json.loads(CHAT.answer(b'{"id":"x1","model":"theirs:8b","choices":[{"text":"theirs:8b"}]}'))
    assert answer == {"id": f"chatcmpl-{JOB}", "model": "ours", "choices": [{"text": "theirs:8b"}]}
    plain = Renaming("ours", "theirs", JOB, "/v1/completions").answer(b'{"id":"x","model":"theirs"}')
    assert json.loads(plain)["id"] == f"cmpl-{JOB}"
    embedding = Renaming("ours", "theirs", JOB, "/v1/embeddings").answer(b'{"model":"theirs","data":[]}')
    assert json.loads(embedding) == {"model": "ours", "data": []}


def test_streams_are_renamed_event_by_event():
    events = b'data: {"id":"x","model":"theirs:8b","choices":[]}\n\n: comment\n\n'
    events += b'event: a\ndata: {"id":"x"}\n\ndata: [DONE]\n\n'
    first, comment, named, done, rest = CHAT.events(events).split(b"\n\n")
    assert json.loads(first[6:]) == {"id": f"chatcmpl-{JOB}", "model": "ours", "choices": []}
    assert comment == b": comment"
    assert named.startswith(b"event: a\ndata: {")
    assert done == b"data: [DONE]"
    assert rest == b""


def test_what_is_not_an_object_passes_as_it_is():
    for body in (b"", b"[1]", b"not json", b'{"error": {"message": "theirs"}}'):
        assert CHAT.answer(body) == body
