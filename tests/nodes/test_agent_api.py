"""The agents' door over HTTP: good messages get through, bad ones get a clear refusal and change nothing."""

from __future__ import annotations

import json

import msgspec
import pytest
import redis
from django.apps import apps

from nodes import registry, steering
from nodes.models import Node, NodeState
from tests.nodes.agents import enrol, heartbeat, registration
from worker_agent.contract import GOODBYE, HEARTBEAT, REGISTER, BeatReply, Goodbye, Refused, Registered

pytestmark = pytest.mark.django_db


def send(client, path, message, authorization=""):
    body = message if isinstance(message, bytes) else msgspec.json.encode(message)
    headers = {"authorization": authorization} if authorization else {}
    return client.post(path, body, content_type="application/json", headers=headers)


def plain(message) -> dict:
    return json.loads(msgspec.json.encode(message))


def everything() -> dict[str, list]:
    """All rows of our own tables."""
    labels = ("nodes", "jobs", "api")
    return {
        m._meta.label: list(m._default_manager.order_by("pk").values())
        for app in labels
        for m in apps.get_app_config(app).get_models()
    }


def bearer(answer) -> str:
    return f"Bearer {answer.node}.{answer.secret}"


def test_register_beat_and_goodbye(client):
    _, token = registry.new_token()
    said = send(client, REGISTER, registration(token=token))
    assert said.status_code == 200
    answer = msgspec.json.decode(said.content, type=Registered)
    assert "testserver" in answer.redis.url
    beat = send(client, HEARTBEAT, heartbeat(), bearer(answer))
    assert beat.status_code == 200
    assert msgspec.json.decode(beat.content, type=BeatReply).state == "online"
    bye = send(client, GOODBYE, Goodbye(1, "done"), bearer(answer))
    assert (bye.status_code, bye.content) == (204, b"")
    assert Node.objects.get().state == NodeState.GONE


def with_field(message, path: str, value) -> bytes:
    """The message with one field set to a value; `path` such as gpus.0.vram_free."""
    whole = plain(message)
    *way, last = path.split(".")
    at = whole
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    at[last] = value
    return json.dumps(whole).encode()


BAD_FIELDS = [
    ("gpus.0.vram_free", -1),
    ("gpus.0.vram_total", 2**61),
    ("gpus.0.vram_free", 1.5),
    ("gpus.0.index", -1),
    ("gpus.0.name", "x" * 201),
    ("gpus.0.surprise", 1),
    ("gpus", [{}] * 65),
    ("models.0.name", "../../etc/passwd"),
    ("models.0.name", "a b"),
    ("models.0.name", ""),
    ("models.0.slots", 0),
    ("models.0.state", "perfect"),
    ("models.0.kv_cache_usage", 1.1),
    ("models.0.ttft_ms", -0.1),
    ("models.0.tokens_per_s", float("nan")),
    ("models.0.tokens_per_s", float("inf")),
    ("models.0.running", 10**10),
    ("models", None),
    ("surprise", True),
]
BAD_IN_REGISTER = [
    *BAD_FIELDS,
    ("name", "-box"),
    ("name", "b" * 64),
    ("host.cpu_count", 0),
    ("host.ram_free", -1),
    ("labels", {str(i): "" for i in range(65)}),
    ("labels", {"k": "v" * 201}),
    ("labels", ["a"]),
    ("node", "A" * 16),
    ("node", "a" * 15),
    ("protocol", "1"),
]
BAD_IN_BEAT = [
    *[bad for bad in BAD_FIELDS if bad[0].split(".")[-1] not in {"vram_total", "name"}],
    ("incarnation", 0),
    ("draining", "yes"),
    ("cpu_usage", 1.01),
    ("ram_free", -5),
    ("attempts", ["x" * 201]),
    ("gpus.0.temperature_c", 1e9),
    ("gpus.0.power_w", -1),
    ("gpus.0.utilisation", float("nan")),
]
NOT_MESSAGES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"not json",
    b'{"a":1',
    b"\xff\xfe",
    b'"\xed\xa0\x80"',
    b"[" * 100_000,
]


@pytest.mark.parametrize(("field", "value"), BAD_IN_REGISTER)
def test_a_bad_registration_is_refused_and_changes_nothing(client, field, value):
    _, token = registry.new_token()
    before = everything()
    answer = send(client, REGISTER, with_field(registration(token=token), field, value))
    assert answer.status_code == 422
    refused = msgspec.json.decode(answer.content, type=Refused)
    assert refused.code == "invalid_request"
    assert len(refused.message) < 400
    assert everything() == before


@pytest.mark.parametrize(("field", "value"), BAD_IN_BEAT)
def test_a_bad_beat_is_refused_and_changes_nothing(client, field, value):
    _, identity = enrol()
    before = everything()
    answer = send(client, HEARTBEAT, with_field(heartbeat(), field, value), bearer(identity))
    assert answer.status_code == 422
    assert msgspec.json.decode(answer.content, type=Refused).code == "invalid_request"
    assert everything() == before


@pytest.mark.parametrize("body", NOT_MESSAGES, ids=lambda b: repr(b[:12]))
@pytest.mark.parametrize("path", [REGISTER, HEARTBEAT, GOODBYE])
def test_what_is_no_message_is_refused(client, path, body):
    _, identity = enrol()
    before = everything()
    answer = send(client, path, body, bearer(identity))
    assert answer.status_code == 422
    assert msgspec.json.decode(answer.content, type=Refused).code == "invalid_request"
    assert everything() == before


def test_ten_megabytes_of_labels_are_too_large(client):
    _, token = registry.new_token()
    before = everything()
    body = with_field(registration(token=token), "labels", {"k": "v" * 10_000_000})
    answer = send(client, REGISTER, body)
    assert answer.status_code == 413
    assert msgspec.json.decode(answer.content, type=Refused).code == "too_large"
    assert everything() == before


@pytest.mark.parametrize("protocol", [0, 2])
def test_another_protocol_is_refused_with_426(client, protocol):
    _, token = registry.new_token()
    before = everything()
    answer = send(client, REGISTER, registration(token=token, protocol=protocol))
    assert answer.status_code == 426
    assert "upgrade" in msgspec.json.decode(answer.content, type=Refused).message
    assert everything() == before


@pytest.mark.parametrize("path", [HEARTBEAT, GOODBYE])
@pytest.mark.parametrize("authorization", ["", "Bearer x", "Bearer " + "a" * 16 + ".gtn-" + "b" * 43])
def test_without_good_credentials_nothing_is_taken(client, path, authorization):
    enrol()
    before = everything()
    answer = send(client, path, heartbeat() if path == HEARTBEAT else Goodbye(1), authorization)
    assert answer.status_code == 401
    assert msgspec.json.decode(answer.content, type=Refused).code == "unknown_node"
    assert everything() == before


def test_a_fenced_agent_hears_409_and_a_revoked_one_403(client):
    node, identity = enrol()
    assert send(client, HEARTBEAT, heartbeat(2), bearer(identity)).status_code == 409
    assert send(client, GOODBYE, Goodbye(2), bearer(identity)).status_code == 409
    steering.revoke(node, "ann")
    assert send(client, HEARTBEAT, heartbeat(), bearer(identity)).status_code == 403


def test_a_refusal_that_passes_says_when_to_try_again(client, wire):
    node, identity = enrol()
    wire.set(f"gt:node:{node.pk}:lease", "1")
    again = registration(node=identity.node, secret=identity.secret, machine="copy")
    answer = send(client, REGISTER, again)
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "6")


def test_an_agent_is_told_when_redis_is_away(client, wire):
    _, token = registry.new_token()
    wire.execute_command("ACL", "SETUSER", "default", "-@all", "+acl", "+client", "+hello", "+auth")
    try:
        before = everything()
        answer = send(client, REGISTER, registration(token=token))
        assert everything() == before
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert answer.status_code == 503
    assert msgspec.json.decode(answer.content, type=Refused).code == "redis_unavailable"
    assert answer.headers["Retry-After"] == "2"
    with pytest.raises(redis.RedisError):
        wire.execute_command("NO-SUCH-COMMAND")  # the server itself is fine


@pytest.mark.parametrize("path", [REGISTER, HEARTBEAT, GOODBYE])
def test_only_post_is_taken(client, path):
    assert client.get(path).status_code == 405


def test_the_list_of_a_beat_is_kept_unless_the_agent_was_fenced(client, wire):
    node, answer = enrol()
    send(client, HEARTBEAT, heartbeat(attempts=["j:1"]), bearer(answer))
    packed = wire.hget("gt:nodes:attempts", node.pk)
    assert b"j:1" in packed
    assert send(client, HEARTBEAT, heartbeat(7, attempts=["k:1"]), bearer(answer)).status_code == 409
    assert wire.hget("gt:nodes:attempts", node.pk) == packed
