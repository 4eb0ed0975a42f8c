from __future__ import annotations

import json

import pytest
import redis
from rest_framework import exceptions

from api import errors, streaming
from jobs import errors as ends
from jobs.errors import JobError
from jobs.models import TERMINAL


def kinds(of: type[JobError] = JobError) -> list[type[JobError]]:
    return [kind for sub in of.__subclasses__() for kind in (sub, *kinds(sub))]


def test_every_end_of_a_job_has_its_row():
    assert set(errors.JOB_ERRORS) == set(kinds())
    assert set(errors.NO_RETRY) <= set(errors.JOB_ERRORS)


def test_no_two_ends_share_a_code():
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert JobError.code not in codes


@pytest.mark.parametrize("kind", kinds())
def test_each_looks_as_openais_errors_do(kind):
    refused = errors.of_job(kind("what happened"))
    said = json.loads(refused.body())["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert (said["message"], said["code"]) == ("what happened", kind.code)
    assert 400 <= refused.status < 600
    assert refused.status != 409  # the official clients would repeat it
    headers = dict(refused.headers)
    if kind in errors.NO_RETRY:
        assert headers[b"x-should-retry"] == b"false"
    elif refused.status in {429, 503}:
        assert int(headers[b"retry-after"]) >= 1


@pytest.mark.parametrize("kind", kinds())
def test_each_ends_the_job(kind):
    from jobs.lifecycle import MOVES

    assert MOVES[kind.move][1] in TERMINAL


def test_a_wait_of_ones_own_is_said_in_whole_seconds():
    headers = dict(errors.of_job(ends.QueueFull("full", retry_after=0.3)).headers)
    assert headers[b"retry-after"] == b"1"


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (ends.NoWorkers("none"), 503, "no_workers"),
        (redis.ConnectionError("host and port"), 503, "broker_unavailable"),
        (errors.unauthorized("no"), 401, "invalid_api_key"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (exceptions.NotFound(), 404, "not_found"),
        (exceptions.ParseError("bad"), 400, "parse_error"),
        (exceptions.Throttled(), 429, "throttled"),
    ],
)
def test_what_django_rest_framework_raises_has_the_same_shape(raised, status, code):
    answer = errors.drf_exception_handler(raised, {})
    assert answer
    assert (answer.status_code, answer.data["error"]["code"]) == (status, code)
    assert set(answer.data["error"]) == {"message", "type", "param", "code"}
    assert "host and port" not in str(answer.data)


def test_what_nobody_expected_is_left_to_django():
    assert errors.drf_exception_handler(ZeroDivisionError(), {}) is None
    assert "traceback" not in str(errors.unexpected().data()).lower()


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (b'{"error":{"message":"too long","param":"prompt","code":400}}', "too long", "prompt", None),
        (b'{"error":{"message":"no","code":"x"}}', "no", None, "x"),
        (b'{"message":"older shape"}', "older shape", None, None),
        (b'{"error":"text"}', "the engine refused the request with status 400", None, None),
        (b"[]", "the engine refused the request with status 400", None, None),
        (b"<html>", "the engine refused the request with status 400", None, None),
        (b"\xff", "the engine refused the request with status 400", None, None),
        (b"[" * 100_000, "the engine refused the request with status 400", None, None),
    ],
    ids=range(8),
)
def test_an_engines_refusal_is_put_into_our_shape(body, message, param, code):
    refused = streaming.engine_refusal(400, body)
    assert (refused.status, refused.message, refused.param, refused.code) == (400, message, param, code)
