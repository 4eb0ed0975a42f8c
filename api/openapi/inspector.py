"""How drf-spectacular describes our views: what it finds in the URLs, filled in from `operations`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
import uritemplate
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry

from api.openapi import answers
from api.openapi.batch_operations import TABLE as BATCHES
from api.openapi.operation import SECURITY, Content, Operation, ends
from api.openapi.operations import TABLE as USUAL

TABLE = {**USUAL, **BATCHES}

UNDESCRIBED = "x-undescribed"
"""Marks what is served and not in the table. A test looks for it."""
_REF = "#/components/schemas/{name}"


class TableSchema(AutoSchema):
    """Of one view. Paths, methods and path parameters are those of the URLs."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: ComponentRegistry
    ) -> dict[str, Any] | None:
        described = TABLE.get((method.upper(), path))
        if described is None:
            found = super().get_operation(path, path_regex, path_prefix, method, registry)
            return found and {**found, UNDESCRIBED: True}
        self.registry, self.path, self.path_regex = registry, path, path_regex
        self.path_prefix, self.method = path_prefix, method.upper()
        return _operation(described, self._resolve_path_parameters(uritemplate.variables(path)))


def _operation(described: Operation, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": described.id,
        "summary": described.summary,
        "tags": [described.tag],
        "parameters": parameters
        + [
            {"name": q.name, "in": q.where, "description": q.description, "schema": q.schema}
            for q in described.query
        ],
        "security": [{name: []} for name in described.security] or [{}],
        "responses": {str(status): body for status, body in _responses(described)},
    }
    if described.request:
        operation["requestBody"] = {"required": True, "content": _content([described.request])}
    return operation


def _responses(described: Operation) -> Iterator[tuple[int, dict[str, Any]]]:
    for status, (words, contents) in described.responses.items():
        response: dict[str, Any] = {"description": words or HTTPStatus(status).phrase}
        if contents:
            response["content"] = _content(contents)
        yield status, response
    of_jobs = ends() if described.tag in {"OpenAI", "Jobs"} else {}
    usual = {500, 503} | ({401} if described.security else set())
    for status in sorted((usual | set(described.refusals)) - described.responses.keys()):
        codes = of_jobs.get(status, []) if status in described.refusals else []
        words = HTTPStatus(status).phrase + (f": {', '.join(codes)}" if codes else "")
        yield status, {"description": words, "content": _content([Content(described.refusal)])}


def _content(contents: Any) -> dict[str, Any]:
    found = {}
    for content in contents:
        media: dict[str, Any] = {"schema": {} if content.kind is None else _types()[0][content.kind]}
        if content.example is not None:
            media["example"] = content.example
        found[content.media] = media
    return found


@functools.cache
def _types() -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of each type that the table names (a reference), and what the references lead to."""
    kinds: list[Any] = [answers.Error]
    for described in TABLE.values():
        contents = [c for _, each in described.responses.values() for c in each]
        contents += [described.request] if described.request else []
        for kind in (*(c.kind for c in contents), described.refusal):
            if kind is not None and kind not in kinds:
                kinds.append(kind)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    return dict(zip(kinds, schemas, strict=True)), components


def add_components(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A post-processing hook: the schemas that the operations refer to, and how callers say who they are."""
    used = _reachable(result["paths"], _types()[1])
    result["components"] = {"schemas": dict(sorted(used.items())), "securitySchemes": SECURITY}
    return result


def _reachable(start: Any, components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    todo: list[Any] = [start]
    while todo:
        thing = todo.pop()
        if isinstance(thing, dict):
            todo.extend(thing.values())
            name = str(thing.get("$ref", "")).rpartition("/")[2]
            if name in components and name not in found:
                found[name] = components[name]
                todo.append(components[name])
        elif isinstance(thing, list):
            todo.extend(thing)
    return found
