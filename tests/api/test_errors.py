from __future__ import annotations

import ast
import json
from pathlib import Path

import httpx
import pytest
import redis
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.core.management import call_command
from django.http import Http404
from rest_framework import exceptions

from api import error_codes, errors, gateway, streaming
from api.error_codes import CODES, TABLE
from gputorrent import logs, tracing
from gputorrent.asgi import application
from jobs import errors as ends
from jobs.errors import JobError
from jobs.models import TERMINAL

ROOT = Path(__file__).resolve().parents[2]


def kinds(of: type[JobError] = JobError) -> list[type[JobError]]:
    return [kind for sub in of.__subclasses__() for kind in (sub, *kinds(sub))]


# -- the table -----------------------------------------------------------------------------------------


def named_in_the_source() -> dict[str, str]:
    """Every code that a refusal in our source is made with, and where."""
    found = {kind.code: "jobs/errors.py" for kind in kinds()} | {JobError.code: "jobs/errors.py"}
    for room in ("api", "nodes"):
        for path in (ROOT / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                values = [k.value for k in node.keywords if k.arg == "code"]
                if name in {"ApiError", "_too_many"}:
                    values += node.args[:1]
                elif name == "Refusal" and path.name == "steering.py":
                    values += node.args[1:2]
                elif name != "invalid":
                    continue
                for value in values:
                    for leaf in ast.walk(value):
                        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                            found[leaf.value] = f"{room}/{path.name}:{node.lineno}"
    return found


def test_every_code_has_one_row_and_every_row_is_used():
    assert len(CODES) == len(TABLE)
    named = {**named_in_the_source(), "invalid_value": "the default", "bad_request": "errors.py"}
    named.update(dict.fromkeys(errors._OF_DJANGO.values(), "errors.py"))
    assert {code: where for code, where in named.items() if code not in CODES} == {}
    assert set(CODES) - set(named) == set()


def test_the_table_says_what_a_reader_needs():
    for row in TABLE:
        assert 400 <= row.status < 600, row
        assert row.code == row.code.lower()
        assert row.when.endswith(".")
        assert row.remedy.endswith(".")
        assert (row.type == "invalid_request_error") == (row.status in {400, 404, 405, 409, 413, 415, 422}), (
            row
        )


def test_the_page_of_errors_is_what_the_table_says():
    call_command("error_codes", check=True)
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    assert page == error_codes.document()
    assert all(f"| `{row.code}` |" in page for row in TABLE)


def test_a_stale_page_is_found(settings, tmp_path):
    settings.BASE_DIR = tmp_path
    (tmp_path / "docs").mkdir()
    with pytest.raises(Exception, match="stale"):
        call_command("error_codes", check=True)
    call_command("error_codes", verbosity=0)
    call_command("error_codes", check=True)


def test_every_module_makes_its_refusals_from_the_table():
    with pytest.raises(KeyError):
        errors.ApiError("made_up", "no row")


# -- ends of jobs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
def test_each_end_looks_as_openais_errors_do(kind):
    refused = errors.of_job(kind("what happened"))
    said = json.loads(refused.body())["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert (said["message"], said["code"]) == ("what happened", kind.code)
    assert refused.status == CODES[kind.code].status
    assert refused.status != 409  # the official clients would repeat it
    headers = dict(refused.headers)
    if not CODES[kind.code].retry:
        assert headers[b"x-should-retry"] == b"false"
    elif refused.status in {429, 503}:
        assert int(headers[b"retry-after"]) >= 1


@pytest.mark.parametrize("kind", kinds())
def test_each_ends_the_job(kind):
    from jobs.lifecycle import MOVES

    assert MOVES[kind.move][1] in TERMINAL


def test_what_would_be_done_twice_is_not_repeated():
    for error in (errors.of_job(ends.FirstTokenTimeout("x")), errors.unexpected()):
        assert (b"x-should-retry", b"false") in error.headers
    assert errors.of_job(ends.QueueFull("x")).headers == [(b"retry-after", b"5")]


def test_a_wait_of_ones_own_is_said_in_whole_seconds():
    headers = dict(errors.of_job(ends.QueueFull("full", retry_after=0.3)).headers)
    assert headers[b"retry-after"] == b"1"


def test_what_is_not_the_callers_fault_names_the_request():
    def told(error: errors.ApiError) -> str:
        request = tracing.of([(b"x-request-id", b"mine-1")])
        return tracing.within(request, lambda e: e.data()["error"]["message"], error)

    assert told(errors.of_job(ends.NoWorkers("none"))) == "none (request id mine-1)"
    assert told(errors.unexpected()).endswith("(request id mine-1)")
    assert told(errors.invalid("no")) == "no"


# -- what others raise ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (ends.NoWorkers("none"), 503, "no_workers"),
        (redis.ConnectionError("host and port"), 503, "broker_unavailable"),
        (errors.unauthorized("no"), 401, "invalid_api_key"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (exceptions.NotFound(), 404, "not_found"),
        (exceptions.PermissionDenied(), 403, "insufficient_permissions"),
        (exceptions.ParseError("bad"), 400, "invalid_json"),
        (exceptions.UnsupportedMediaType("text/csv"), 415, "unsupported_media_type"),
        (exceptions.Throttled(), 429, "bad_request"),
        (Http404("host and port"), 404, "not_found"),
        (PermissionDenied("host and port"), 403, "insufficient_permissions"),
        (SuspiciousOperation("host and port"), 400, "bad_request"),
    ],
)
def test_what_django_rest_framework_raises_has_the_same_shape(raised, status, code):
    answer = errors.drf_exception_handler(raised, {})
    assert answer
    assert (answer.status_code, answer.data["error"]["code"]) == (status, code)
    assert set(answer.data["error"]) == {"message", "type", "param", "code"}
    assert answer.data["error"]["message"]
    assert "host and port" not in str(answer.data)


def test_what_nobody_expected_is_left_to_django():
    assert errors.drf_exception_handler(ZeroDivisionError(), {}) is None
    assert errors.drf_exception_handler(exceptions.APIException(), {}) is None
    assert "traceback" not in str(errors.unexpected().data()).lower()


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (b'{"error":{"message":"too bold","param":"prompt","code":400}}', "too bold", "prompt", None),
        (b'{"error":{"message":"no","code":"x"}}', "no", None, None),
        (b'{"error":{"message":"This model\'s maximum context length is 8 tokens.","param":"input_tokens"}}',
         "This model's maximum context length is 8 tokens.", "input_tokens", "context_length_exceeded"),
        (b'{"error":{"message":"max_tokens=9 cannot be greater than max_model_len=8."}}',
         "max_tokens=9 cannot be greater than max_model_len=8.", None, "context_length_exceeded"),
        (b'{"message":"older shape"}', "older shape", None, None),
        (b'{"error":"text"}', "the engine refused the request with status 422", None, None),
        (b"[]", "the engine refused the request with status 422", None, None),
        (b"<html>", "the engine refused the request with status 422", None, None),
        (b"\xff", "the engine refused the request with status 422", None, None),
        (b"[" * 100_000, "the engine refused the request with status 422", None, None),
    ],
    ids=range(10),
)  # fmt: skip
def test_an_engines_refusal_is_put_into_our_shape(body, message, param, code):
    refused = streaming.engine_refusal(422, body)
    assert (refused.status, refused.message, refused.param) == (422, message, param)
    assert refused.code == (code or "rejected_by_engine")


@pytest.mark.parametrize("status", [401, 403])
def test_an_engine_that_refuses_us_is_not_the_callers_mistake(status):
    refused = streaming.engine_refusal(status, b'{"error":{"message":"wrong key"}}')
    assert (refused.status, refused.code) == (502, "upstream_failed")


# -- through the application ---------------------------------------------------------------------------


def client_of(state: dict) -> httpx.AsyncClient:
    """A client of the application as a process that holds `state` would serve it."""

    async def app(scope, receive, send):
        await application({**scope, "state": state}, receive, send)

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://testserver")


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/completions"), ("GET", "/v1/models")])
async def test_a_mistake_of_ours_has_the_same_shape_and_leaves_a_traceback(door, caplog, method, path):
    async with client_of({gateway.STATE: object()}) as client:
        answer = await client.request(method, path, headers={"x-request-id": "mine"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert error["message"] == "An internal error occurred. (request id mine)"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"] == "mine"
    assert "object" not in answer.text
    traced = [record for record in caplog.records if record.exc_info]
    assert traced
    assert all("AttributeError" in logs.Lines().format(record) for record in traced)


async def test_a_process_without_its_gateway_says_so(door):
    async with client_of({}) as client:
        answer = await client.post("/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_gateway")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_wrong_host_is_refused_in_the_same_shape(settings):
    settings.ALLOWED_HOSTS = ["elsewhere"]
    async with client_of({}) as client:
        answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "X" * 50])
async def test_no_method_breaks_a_path(door, method):
    async with client_of({}) as client:
        for path in ("/v1/completions", "/v1/models", "/jobs", "/healthz", "/v1/nothing", "/"):
            answer = await client.request(method, path)
            assert answer.status_code not in {500, 501}, (method, path)
