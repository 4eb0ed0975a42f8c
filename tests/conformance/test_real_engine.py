"""The official clients against real vLLM, with the demo's model: one engine for all cases of all clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance import environments, world
from tests.conformance.running import Seen, saw, tried
from tests.journeys.cluster import Cluster
from tests.journeys.test_vllm_models import ENGINE, FOLDER, PATIENT

MODEL = FOLDER.name


def refused(error: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": error, "status": status, "code": code, "param": param}


PYTHON: dict[str, dict[str, Any]] = {
    "models": {"listed": True, "context": 2048},
    "completion": {"knows": True, "finish": "length", "tokens": 4},
    "completion_forms": {"several": [0, 1], "ids": 3, "echo": True, "logprobs": True},
    "completion_stream": {"same": True, "parts": True},
    "chat_whole": {"knows": True, "finish": "stop", "usage": True, "role": "assistant"},
    "stream": {"same": True, "finish": "stop", "ids": 1, "usages": 0},
    "stream_usage": {"choices": 0, "same": True},
    "stream_helper": {"knows": True},
    "several_choices": {"choices": [0, 1, 2]},
    "stop": {"finish": "stop", "without": True},
    "length": {"finish": "length", "tokens": 2},
    "logprobs": {"text": True, "likely": True},
    "structured": {"parsed": True},
    "choice_of_words": {"one": True},
    "tools": refused("BadRequestError", 400, "rejected_by_engine"),
    "tools_declined": {"finish": True},
    "response": {"knows": True, "status": "completed", "id": ["resp", 32], "usage": True},
    "response_stream": {
        "first": "response.created", "last": "response.completed", "same": True, "ids": 1, "in_order": True,
    },
    "response_helper": {"knows": True},
    "response_cut": {"status": "incomplete", "why": "max_output_tokens", "tokens": 2},
    "response_structured": {"parsed": True},
    "response_conversation": {"longer": True, "status": True},
    "response_logprobs": {"told": True},
    "response_refused": refused("BadRequestError", 400, "unsupported_parameter", "previous_response_id"),
    "wrong_key": refused("AuthenticationError", 401, "invalid_api_key"),
    "no_model": refused("NotFoundError", 404, "model_not_found", "model"),
    "bad_value": refused("BadRequestError", 400, "invalid_value", "temperature"),
    "too_long": refused("BadRequestError", 400, "context_length_exceeded", "input_tokens"),
    "too_long_stream": refused("BadRequestError", 400, "context_length_exceeded", "input_tokens"),
    "too_long_response": refused("BadRequestError", 400, "context_length_exceeded", "input_tokens"),
    "tokens_by_id": {"back": True, "counted": True, "same": True, "knows": True},
    "disconnect": {},
    "response_disconnect": {},
}  # fmt: skip
NODE: dict[str, dict[str, Any]] = {
    "chat_whole": {"knows": True, "finish": "stop"},
    "stream": {"same": True, "ids": 1},
    "structured": {"parsed": "boolean"},
    "response": {"knows": True, "status": "completed"},
    "response_stream": {"first": "response.created", "last": "response.completed", "in_order": True},
    "too_long": {"error": "BadRequestError", "status": 400, "code": "context_length_exceeded"},
    "disconnect": {},
}
CLIENTS = {
    "openai2": ("real_engine.py", PYTHON),
    "openai3": ("real_engine.py", PYTHON),
    environments.NODE: ("real_engine.mjs", NODE),
}

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for needed in (ENGINE, FOLDER):
        if not needed.exists():
            pytest.skip(f"THE REAL ENGINE IS NOT TESTED: there is no {needed}: run `make demo`")
    with Cluster(tmp_path_factory.mktemp("real"), **PATIENT) as cluster:
        cluster.real_agent("one", f"{MODEL}={FOLDER}", str(ENGINE))
        yield cluster


@pytest.fixture(scope="module")
def seen(real: Cluster) -> Seen:
    """What each client that can be run here has seen, one after the other."""
    return {
        name: tried(name, program, {**world.plan(real, name), "fast": MODEL}, real.folder / f"{name}.log")
        for name, (program, _) in CLIENTS.items()
        if not environments.missing(name)
    }


@pytest.mark.parametrize(
    ("client", "case"), [(client, case) for client, (_, cases) in CLIENTS.items() for case in cases]
)
def test_a_client_sees_of_the_real_engine_what_its_users_expect(client, case, needs, request):
    needs(client)
    found = saw(request.getfixturevalue("seen"), client, case)
    if case.endswith("disconnect"):
        ended = request.getfixturevalue("real").job_ended(found.pop("job"))
        assert ended["status"] == "cancelled"
    assert found == CLIENTS[client][1][case]


def test_nothing_is_left_on_the_real_engine(request, real):
    if all(environments.missing(name) for name in CLIENTS):
        pytest.skip("no client can be run here")
    request.getfixturevalue("seen")
    real.until(lambda: real.slots_held() == 0, "no slot is held", 30)
    real.until(lambda: real.workers()["one"]["in_flight"] == 0, "the agent runs nothing", 30)
    faults = [it for it in real.get("/jobs?state=failed&limit=100").json()["data"] if it["error"]]
    assert [it["error"]["code"] for it in faults if it["error"]["code"] == "upstream_failed"] == []
