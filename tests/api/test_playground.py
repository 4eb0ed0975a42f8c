"""The playground's doors: the API's verbs for whoever is logged in, and for nobody else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.test import Client

from api import authentication
from api.models import ApiKey, Usage
from jobs.models import Job
from tests.jobs.scripted import PATIENCE_SECONDS, ScriptedNode, until
from worker_agent.contract import Cancel

PAGE = "/admin/playground/"
CHAT = PAGE + "v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Session:
    """A user logged in at `client`; scripts send `headers`."""

    def __init__(self, client, cookie: str) -> None:
        self.client, self.headers = client, {"Cookie": f"sessionid={cookie}"}

    async def open(self) -> Session:
        """Look at the page, which gives scripts their CSRF token."""
        page = await self.client.get(PAGE, headers=self.headers)
        assert page.status_code == 200, page.text[:500]
        token = re.search(r'data-csrf="(\w+)"', page.text)
        assert token
        self.headers["Cookie"] += f"; csrftoken={page.cookies['csrftoken']}"
        self.headers["X-CSRFToken"] = token[1]
        return self

    async def node(self, wire, **more) -> ScriptedNode:
        """A node with model `m`, once the web process knows of it."""
        node = ScriptedNode(wire, **more)
        await self.sees(lambda models: any(model["usable"] for model in models))
        return node

    async def sees(self, true: Callable[[list[dict]], bool]) -> None:
        """Wait until the models are like that. The web process looks again every now and then."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if true(await self.models()):
                    return
                await asyncio.sleep(0.01)

    async def models(self) -> list[dict]:
        answer = await self.client.get(f"{PAGE}models", headers=self.headers)
        return answer.json()["data"]

    async def ask(self, path: str = CHAT, **changes):
        return await self.client.post(path, json={**HELLO, **changes}, headers=self.headers)


@sync_to_async
def cookie_of(name: str, *permissions: str, staff: bool = True) -> str:
    user = get_user_model().objects.create_user(name, password="x", is_staff=staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client.cookies["sessionid"].value


@pytest.fixture
async def ada(ledger, serve) -> Session:
    """She may ask, and look at nothing else."""
    cookie = await cookie_of("ada", "add_job")
    return await Session(await serve(), cookie).open()


def code_of(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def row_of(name: str) -> ApiKey:
    return await ApiKey.objects.aget(name=f"playground: {name}")


async def test_a_stream_passes_untouched_and_is_counted_for_the_user(ada, wire):
    node = await ada.node(wire)
    asking = asyncio.create_task(ada.ask(stream=True))
    work = await node.take()
    node.chunk(work, 0, b'data: {"a": 1}\n\n')
    node.done(work, 1, b"data: [DONE]\n\n")
    answer = await asking
    assert answer.content == b'data: {"a": 1}\n\ndata: [DONE]\n\n'
    assert answer.headers["x-job-id"] == work.job
    assert answer.headers["content-type"].startswith("text/event-stream")
    record = (await ada.client.get(f"{PAGE}jobs/{work.job}", headers=ada.headers)).json()
    assert (record["state"], record["usage"]["completion_tokens"]) == ("completed", 7)
    key = await row_of("ada")
    assert (await Job.objects.aget(pk=work.job)).key_id == key.pk
    usage = await Usage.objects.aget(key=key)
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (1, 3, 7)


async def test_a_plain_completion_gets_its_body_to_the_engine(ada, wire):
    node = await ada.node(wire)
    body = {"model": "m", "prompt": "Once", "max_tokens": 4}
    asking = asyncio.create_task(ada.client.post(f"{PAGE}v1/completions", json=body, headers=ada.headers))
    work = await node.take()
    assert (work.path, json.loads(work.body)) == ("/v1/completions", body)
    node.done(work, body=b'{"choices": []}')
    assert (await asking).json() == {"choices": []}


async def test_stop_ends_the_job_on_its_node(ada, wire):
    node = await ada.node(wire)
    asking = asyncio.create_task(ada.ask(stream=True))
    work = await node.take()
    node.chunk(work, 0, b'data: {"a": 1}\n\n')
    ended = await ada.client.delete(f"{PAGE}jobs/{work.job}", headers=ada.headers)
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")
    assert await until(node.controls) == [Cancel(work.job, 1)]
    assert b'"code":"cancelled"' in (await asking).content


async def test_requests_are_checked_as_any_callers_are(ada, wire):
    await ada.node(wire)
    assert code_of(await ada.ask(temperature=9)) == (400, "invalid_value")
    assert code_of(await ada.ask(nonsense=1)) == (400, "unknown_parameter")
    assert code_of(await ada.ask(model="other")) == (404, "model_not_found")
    other = await ada.client.post(f"{PAGE}v1/embeddings", json=HELLO, headers=ada.headers)
    assert other.status_code == 404


async def test_models_are_listed_with_how_they_stand(ada, wire):
    await ada.node(wire, max_model_len=2048)
    expected = {"id": "m", "state": "loaded", "words": "loaded on 1 node"}
    assert await ada.models() == [{**expected, "usable": True, "max_model_len": 2048}]


async def test_the_users_row_has_rights_and_limits_like_any_key(ada, wire):
    await ada.node(wire)
    await ada.ask(temperature=9)  # the row is made with the first request
    key = await row_of("ada")
    await sync_to_async(authentication.edit)(key, allowed_models=["other*"])
    await ada.sees(lambda models: not models)
    assert code_of(await ada.ask()) == (404, "model_not_found")
    await sync_to_async(authentication.revoke)(key)
    assert code_of(await ada.ask()) == (401, "invalid_api_key")


async def test_no_secret_opens_the_row(ada, wire):
    await ada.ask(temperature=9)
    key = await row_of("ada")
    for secret in (key.key_hash, key.prefix):
        answer = await ada.client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
        assert code_of(answer) == (401, "invalid_api_key")
    with pytest.raises(ValidationError, match="no secret"):
        await sync_to_async(authentication.rotate)(key)


async def test_what_one_user_asked_another_neither_sees_nor_ends(ada, wire):
    node = await ada.node(wire)
    eve = await Session(ada.client, await cookie_of("eve", "add_job")).open()
    asking = asyncio.create_task(ada.ask(stream=True))
    work = await node.take()
    for method in ("GET", "DELETE"):
        answer = await eve.client.request(method, f"{PAGE}jobs/{work.job}", headers=eve.headers)
        assert code_of(answer) == (404, "job_not_found")
    node.done(work, 0, b"data: [DONE]\n\n")
    assert (await asking).status_code == 200


async def test_who_may_only_look_is_told_so_in_words(ledger, serve):
    session = Session(await serve(), await cookie_of("viewer", "view_job"))
    page = await session.client.get(PAGE, headers=session.headers)
    assert page.status_code == 403
    assert "jobs.add_job" in page.text
    answer = await session.client.get(f"{PAGE}models", headers=session.headers)
    assert code_of(answer) == (403, "insufficient_permissions")


@pytest.mark.parametrize("staff", [True, False])
async def test_a_stranger_and_who_is_no_staff_are_turned_away(ledger, serve, staff):
    client = await serve()
    headers = {} if staff else {"Cookie": f"sessionid={await cookie_of('guest', 'add_job', staff=False)}"}
    page = await client.get(PAGE, headers=headers)
    assert (page.status_code, page.headers["location"].split("?")[0]) == (302, "/admin/login/")
    answer = await client.get(f"{PAGE}models", headers=headers)
    assert code_of(answer) == (401, "invalid_api_key")


async def test_another_sites_script_cannot_ask(ada, wire):
    await ada.node(wire)
    without = {"Cookie": ada.headers["Cookie"]}
    for method, path in (("POST", CHAT), ("DELETE", f"{PAGE}jobs/{'0' * 32}")):
        answer = await ada.client.request(method, path, json=HELLO, headers=without)
        assert answer.status_code == 403
    assert not await Job.objects.aexists()


async def test_another_method_is_refused(ada):
    answer = await ada.client.get(CHAT, headers=ada.headers)
    assert code_of(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
