"""The schema against what is served: paths and methods, types, examples, real answers."""

from __future__ import annotations

import json

import pytest
from asgiref.sync import sync_to_async
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.drainage import GENERATOR_STATS
from jsonschema import Draft202012Validator
from rest_framework.views import APIView

from api.authentication import new_key
from api.openapi.inspector import UNDESCRIBED
from api.openapi.views import document
from api.schemas import SCHEMAS
from nodes.models import Gpu, Node, NodeModel, NodeState
from tests.jobs.scripted import ScriptedNode

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def schema():
    document.cache_clear()
    return json.loads(document())


def operations(schema):
    return [(path, method, op) for path, item in schema["paths"].items() for method, op in item.items()]


def served():
    """View class and the number of parameters in the path -> methods, for each REST path in the URLs."""
    found, todo = [], list(get_resolver().url_patterns)
    while todo:
        pattern = todo.pop()
        if isinstance(pattern, URLResolver):
            todo.extend(pattern.url_patterns)
        elif isinstance(pattern, URLPattern):
            view = getattr(pattern.callback, "cls", None)
            if view and issubclass(view, APIView):
                found.append((pattern, {m for m in METHODS if hasattr(view, m)}))
    return found


def test_every_path_and_method_that_is_served_is_in_the_schema_and_no_other(schema):
    urls = served()
    assert len(urls) == len(schema["paths"]) > 15
    described = sorted((path, method) for path, method, _ in operations(schema))
    matched = sorted(
        (path, method)
        for path in schema["paths"]
        for pattern, methods in urls
        # A path of the schema with its parameters filled in leads back to the view.
        if pattern.resolve(path[1:].replace("{verb}", _verb(path)).replace("{", "").replace("}", ""))
        for method in methods
    )
    assert described == matched


def _verb(path):
    return "load" if "models" in path else "drain"


def test_each_operation_is_described(schema):
    left = [(path, method) for path, method, op in operations(schema) if UNDESCRIBED in op]
    assert not left, "add them to api/openapi/operations.py"
    assert not GENERATOR_STATS, "drf-spectacular had something to say"
    ids = [op["operationId"] for _, _, op in operations(schema)]
    assert len(ids) == len(set(ids))


def test_the_document_is_openapi_3_1(schema):
    assert schema["openapi"].startswith("3.1.")
    names = schema["components"]["schemas"].keys()
    text = json.dumps(schema)
    refs = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert refs == names
    for component in schema["components"]["schemas"].values():
        Draft202012Validator.check_schema(component)
    for _, _, op in operations(schema):
        assert op["responses"]
        for requirement in op["security"]:
            assert requirement.keys() <= schema["components"]["securitySchemes"].keys()


def bodies(op):
    for part in (op.get("requestBody", {}), *op["responses"].values()):
        yield from part.get("content", {}).values()


def test_each_example_passes_its_own_schema(schema):
    examples = 0
    for path, method, op in operations(schema):
        for media in bodies(op):
            if "example" in media:
                examples += 1
                assert errors(schema, media["schema"], media["example"]) == [], (method, path)
    assert examples >= 10


def test_what_refuses_a_request_is_what_the_schema_says(schema):
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    good = body["example"]
    for wrong in ({**good, "temperature": 9}, {**good, "messages": []}, {"model": "m"}, {**good, "n": "2"}):
        assert errors(schema, body["schema"], wrong)


def errors(schema, part, instance):
    whole = {**part, "components": schema["components"]}
    return [e.message for e in Draft202012Validator(whole).iter_errors(instance)]


def check(schema, path, answer, method="get"):
    """An answer that was really given, against what the schema says of it."""
    response = schema["paths"][path][method]["responses"].get(str(answer.status_code))
    assert response, f"{method} {path} answered {answer.status_code}, which is not described"
    media = response["content"][answer.headers["content-type"].split(";")[0]]
    if media["schema"]:
        assert errors(schema, media["schema"], answer.json()) == [], (method, path)
    return answer


async def test_real_answers_are_as_described(serve, schema, wire):
    node = await Node.objects.acreate(id="a" * 16, name="n", state=NodeState.ONLINE, incarnation=1)
    await Gpu.objects.acreate(node=node, index=0, uuid="g", name="A100", vram_total=80, vram_free=20)
    await NodeModel.objects.acreate(node=node, name="m", state="ready", slots=1)
    ScriptedNode(wire)
    _, boss = await sync_to_async(new_key)("boss", staff=True)
    _, ann = await sync_to_async(new_key)("ann")
    key, weak = ({"Authorization": f"Bearer {secret}"} for secret in (boss, ann))
    client = await serve()
    for path in ("/v1/models", "/workers", "/cluster/status", "/metrics", "/healthz", "/readyz", "/schema"):
        assert check(schema, path, await client.get(path, headers=key)).status_code == 200
    for path in ("/workers", "/cluster/status", "/metrics"):
        assert check(schema, path, await client.get(path, headers=weak)).status_code == 403
        assert check(schema, path, await client.get(path)).status_code == 401
    check(schema, "/v1/models/{model}", await client.get("/v1/models/m", headers=key))
    check(schema, "/v1/models/{model}", await client.get("/v1/models/none", headers=key))
    job = {"model": "m", "prompt": "x"}
    made = check(schema, "/jobs", await client.post("/jobs", json=job, headers=key), "post")
    check(schema, "/jobs/{job}", await client.get(made.headers["location"], headers=key))
    check(schema, "/jobs/{job}", await client.get("/jobs/none", headers=key))
    check(schema, "/jobs", await client.post("/jobs", json={}, headers=key), "post")
    for path in SCHEMAS:
        for body in ({}, {"model": "m", "x": 1}):
            check(schema, path, await client.post(path, json=body, headers=key), "post")
        check(schema, path, await client.post(path, json={}), "post")
    steered = await client.post(f"/workers/{node.pk}/drain", headers=key)
    assert check(schema, "/workers/{node}/{verb}", steered, "post").status_code == 200
    for verb in ("drain", "models/load"):
        path = "/workers/{node}/" + verb.replace("drain", "{verb}").replace("load", "{verb}")
        for headers in (key, weak, {}):
            body = {"model": "none"}
            check(schema, path, await client.post(f"/workers/no/{verb}", json=body, headers=headers), "post")
    for path in ("/register", "/nodes/heartbeat", "/nodes/goodbye"):
        check(schema, path, await client.post(path, json={}), "post")


async def test_the_page_needs_nothing_from_elsewhere(serve):
    client = await serve()
    page = await client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "http://" not in page.text.replace("http://testserver", "")
    assert "https://" not in page.text
    parts = [p.split('"')[0] for p in page.text.split('="/static/')[1:]]
    assert any(p.endswith("swagger-ui-bundle.js") for p in parts)
    assert '"/schema"' in page.text
