from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent import sse
from worker_agent.contract import Usage


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TOKEN = event(choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": None}])
ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})


@given(st.lists(st.integers(1, 40)))
def test_however_the_bytes_are_cut_only_whole_events_come_out_and_none_is_lost(sizes):
    stream, out, pending = ROLE + TOKEN + USAGE + sse.END, b"", b""
    for size in [*sizes, len(stream)]:
        piece, stream = stream[:size], stream[size:]
        events, pending = sse.cut(pending + piece)
        assert events == b"" or events.endswith(b"\n\n")
        out += events
    assert out == ROLE + TOKEN + USAGE + sse.END
    assert pending == b""


def test_the_usage_event_is_taken_out_only_when_it_is_to_be_hidden():
    events = TOKEN + USAGE + sse.END
    assert sse.take_usage(events, hide=True) == (TOKEN + sse.END, Usage(3, 5))
    assert sse.take_usage(events, hide=False) == (events, Usage(3, 5))


def test_an_answer_that_talks_about_usage_stays():
    talk = event(choices=[{"index": 0, "delta": {"content": '"usage": {"prompt_tokens": 9}'}}])
    assert sse.take_usage(talk, hide=True) == (talk, None)


def test_usage_beside_choices_is_read_but_not_hidden():
    both = event(choices=[{"index": 0, "text": "x"}], usage={"prompt_tokens": 1, "completion_tokens": 2})
    assert sse.take_usage(both, hide=True) == (both, Usage(1, 2))


def test_a_null_usage_is_no_usage():
    null = event(choices=[{"index": 0, "text": "x"}], usage=None)
    assert sse.take_usage(null, hide=True) == (null, None)


def test_cached_tokens_are_read():
    body = {
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
    }
    assert sse.body_usage(json.dumps(body).encode()) == Usage(9, 2, 8)
    body["usage"]["prompt_tokens_details"] = None
    assert sse.body_usage(json.dumps(body).encode()) == Usage(9, 2, 0)
    assert sse.body_usage(b"not json") is None


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "x"},
        {"delta": {"content": "x"}},
        {"delta": {"reasoning_content": "x"}},
        {"delta": {"reasoning": "x"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {}, "finish_reason": "stop"},
    ],
)
def test_every_kind_of_token_counts_as_one(choice):
    assert sse.has_token(ROLE + event(choices=[choice]))


def test_a_role_a_comment_and_the_end_are_no_tokens():
    assert not sse.has_token(ROLE + b": ping\n\n" + USAGE + sse.END)


def test_an_error_event_is_found_wherever_it_stands():
    error = b'data: {"error": {"message": "no", "type": "X", "code": 500}}\n\n'
    assert sse.error_in(error) == "no"
    assert sse.error_in(TOKEN + error + sse.END) == "no"
    assert sse.error_in(TOKEN + sse.END) is None
    talk = event(choices=[{"index": 0, "delta": {"content": '\n\ndata: {"error": {"message": "no"}}'}}])
    assert sse.error_in(talk) is None


def test_error_messages_are_short_and_come_in_two_shapes():
    assert sse.error_message(b'{"error": {"message": "' + b"x" * 1000 + b'"}}') == "x" * 300
    assert sse.error_message(b'{"error": "plain"}') == "plain"
    assert sse.error_message(b"<html>") == ""
