"""The corpus of bad requests, through the whole application by both doors."""

from __future__ import annotations

import random
import re

import httpx
from asgiref.sync import sync_to_async

from api.authentication import new_key
from tests.api import bad_requests
from tests.api.bad_requests import CHAT, GOOD, Bad

make = sync_to_async(new_key)


async def ask(client: httpx.AsyncClient, key: str, bad: Bad) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    if bad.authorized:
        headers["Authorization"] = f"Bearer {key}"
    headers.update(bad.headers)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return await client.request(bad.method, bad.path, content=bad.body, headers=raw)


def seen(answer: httpx.Response) -> tuple:
    """What a client makes of a refusal. Fails unless it has the one shape, and an id."""
    assert answer.headers["content-type"] == "application/json", answer.text[:200]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 500
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
    if answer.status_code == 405:
        assert re.fullmatch(r"[A-Z]+(, [A-Z]+)*", answer.headers["allow"])
    return answer.status_code, error["type"], error["code"], error["param"]


def test_the_corpus_is_large_and_has_nothing_twice():
    assert len(bad_requests.ALL) >= 120
    assert len({(b.path, b.method, b.body, str(b.headers), b.authorized) for b in bad_requests.ALL}) == len(
        bad_requests.ALL
    )


def passes_a_parser(bad: Bad) -> bool:
    """Whether it reaches an application behind a socket: HTTP's parsers refuse some things themselves."""
    return bad.method != "BREW" and all(value == value.strip() for value in bad.headers.values())


async def test_every_bad_request_is_refused_as_it_should_be(door, serve, settings):
    settings.MAX_BODY_BYTES = bad_requests.LARGEST
    _, key = await make("ann")
    client = await serve()
    wrong = []
    sent = [bad for bad in bad_requests.ALL if door != "direct" or passes_a_parser(bad)]
    assert len(sent) >= len(bad_requests.ALL) - 3
    for bad in sent:
        answer = await ask(client, key, bad)
        expected = (bad.status, bad.type, bad.code, bad.param)
        if seen(answer) != expected:
            wrong.append((bad.method, bad.path, bad.body[:200], bad.headers, expected, answer.text[:300]))
    assert not wrong, "\n".join(map(str, wrong))


async def test_the_model_would_have_been_looked_for_otherwise(door, serve):
    """What the corpus changes is what is refused: the request it starts from gets as far as the model."""
    _, key = await make("ann")
    client = await serve()
    for headers in ({}, {"Content-Type": ""}, {"Content-Type": "application/json; charset=utf-8"}):
        answer = await ask(client, key, Bad(GOOD, "", None, headers=headers))
        assert seen(answer)[2] == "model_not_found"


async def test_no_mutation_of_a_request_gives_a_500(door, serve):
    _, key = await make("ann")
    client = await serve()
    chance = random.Random(5)
    bodies = [bad.body for bad in bad_requests.ALL if 2 < len(bad.body) < 2000]
    for _ in range(400):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            what = chance.choice([b"", b"null", b"{", b"[", b'"', b"\\u", b"\xc3", b"-", b"1e5", b":", b","])
            body[at : at + chance.randint(0, 3)] = what
            body = body or bytearray(b"x")
        answer = await ask(client, key, Bad(bytes(body), "", None, path=CHAT))
        assert seen(answer)[0] in {400, 404}, bytes(body)
