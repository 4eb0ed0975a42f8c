"""`/ws/jobs/{id}`: a job to whoever may see it, over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.test import AsyncClient

from api.authentication import new_key, revoke
from gputorrent.asgi import application
from jobs.models import Job
from tests.api.lifespan import running
from tests.jobs.scripted import ScriptedNode, done, until
from worker_agent.contract import Outcome, Work

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
make = sync_to_async(new_key)


class Ended(Exception):
    """The server closed the socket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Watcher:
    """A client of the socket."""

    def __init__(self, app: Any, path: str, headers: list[tuple[bytes, bytes]], offers: list[str]) -> None:
        path, _, query = path.partition("?")
        scope = {
            "type": "websocket", "path": path, "query_string": query.encode(), "headers": headers,
            "subprotocols": offers,
        }  # fmt: skip
        self._channel = ApplicationCommunicator(app, scope)
        self.subprotocol: str | None = None
        self.accepted: dict[str, Any] = {}

    async def open(self) -> Watcher:
        await self._channel.send_input({"type": "websocket.connect"})
        self.accepted = await self._channel.receive_output(10)
        assert self.accepted["type"] == "websocket.accept"
        self.subprotocol = self.accepted["subprotocol"]
        return self

    async def next(self) -> dict[str, Any]:
        """The next message. Raises `Ended`."""
        message = await self._channel.receive_output(10)
        if message["type"] == "websocket.close":
            raise Ended(message["code"], message["reason"])
        found: dict[str, Any] = json.loads(message["text"])
        return found

    async def rest(self) -> tuple[list[dict[str, Any]], Ended]:
        """All messages to the end, and how it closed."""
        seen = []
        while True:
            try:
                seen.append(await self.next())
            except Ended as e:
                return seen, e

    async def until(self, event: str) -> list[dict[str, Any]]:
        seen = [await self.next()]
        while seen[-1]["event"] != event:
            seen.append(await self.next())
        return seen

    async def refused(self) -> tuple[int, str]:
        with pytest.raises(Ended) as e:
            await self.next()
        return e.value.code, e.value.reason

    async def runs(self) -> dict[str, Any]:
        """The message that says that the job has a node. Whoever comes at once may hear of its wait first."""
        while (message := await self.next())["state"] == "pending":
            pass
        assert message["state"] == "running"
        return message

    async def leave(self) -> None:
        await self._channel.send_input({"type": "websocket.disconnect", "code": 1001})
        await self._channel.wait(5)


class Place:
    """The application, a node, and streams under way."""

    def __init__(self, app: Any, node: ScriptedNode) -> None:
        self.app, self.node = app, node
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=20)
        self.tasks: list[asyncio.Task[Any]] = []
        self.watchers: list[Watcher] = []

    async def stream(self, secret: str, **more: Any) -> Work:
        """A stream that a node has begun to work on."""
        body = {**HELLO, "stream": True, **more}
        headers = {"Authorization": f"Bearer {secret}"}
        self.tasks.append(asyncio.create_task(self.http.post(CHAT, json=body, headers=headers)))
        return await self.node.take()

    async def watch(
        self, job: str, secret: str = "", *, offers: tuple[str, ...] = (), query: str = "", **headers: str
    ) -> Watcher:
        if secret:
            headers["authorization"] = f"Bearer {secret}"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        watcher = Watcher(self.app, f"/ws/jobs/{job}{query}", raw, list(offers))
        self.watchers.append(watcher)
        return await watcher.open()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for watcher in self.watchers:
            await watcher.leave()
        await self.http.aclose()


@pytest.fixture
async def place(ledger: None, wire: Any, settings: Any) -> AsyncIterator[Callable[..., Awaitable[Place]]]:
    settings.SNAPSHOT_SECONDS = 0.02
    settings.RECORD_SECONDS = 0.02
    async with AsyncExitStack() as stack:

        async def start(slots: int = 4) -> Place:
            node = ScriptedNode(wire, slots=slots)
            made = Place(await stack.enter_async_context(running(application)), node)
            stack.push_async_callback(made.close)
            return made

        yield start


def sse(n: int) -> bytes:
    return b'data: {"n":%d}\n\n' % n


def chunks(seen: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(m["seq"], m["data"]["n"]) for m in seen if m["event"] == "chunk"]


async def test_a_stream_from_its_beginning_to_its_end(place):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    watcher = await here.watch(work.job, secret)
    assert await watcher.runs() == {
        "seq": 0,
        "event": "state",
        "state": "running",
        "node": here.node.node.name,
    }
    here.node.chunk(work, 0, sse(1) + sse(2))
    assert chunks([await watcher.next(), await watcher.next()]) == [(1, 1), (2, 2)]
    here.node.done(work, 1, sse(3) + b"data: [DONE]\n\n")
    seen, end = await watcher.rest()
    assert chunks(seen) == [(3, 3)]
    usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert seen[-1] == {"seq": 3, "event": "end", "state": "completed", "error": None, "usage": usage}
    assert (end.code, end.reason) == (1000, "")


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("named", ["", "chatcmpl-"])
async def test_whoever_comes_back_gets_what_follows(place, ended, named):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    here.node.chunk(work, 0, sse(1) + sse(2))
    here.node.chunk(work, 1, sse(3))
    watcher = await here.watch(work.job, secret)
    assert chunks(await watcher.until("chunk")) == [(1, 1)]
    await watcher.leave()
    if ended:
        here.node.done(work, 2, b"data: [DONE]\n\n")
        await here.tasks[0]
    again = await here.watch(f"{named}{work.job}", secret, query="?after=1")
    seen: list[tuple[int, int]] = []
    while len(seen) < 2:
        seen += chunks([await again.next()])
    assert seen == [(2, 2), (3, 3)]


async def test_what_is_not_kept_any_more_is_told(place, settings):
    settings.TAIL_BYTES = 300
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    for n in range(1, 20):
        here.node.chunk(work, n - 1, sse(n))
    here.node.done(work, 19, b"data: [DONE]\n\n")
    await here.tasks[0]
    seen, _ = await (await here.watch(work.job, secret, query="?after=2")).rest()
    assert seen[0]["event"] == "gap"
    lost_to = seen[0]["seq"]
    assert 2 < lost_to < 19
    assert chunks(seen) == [(n, n) for n in range(lost_to + 1, 20)]


async def test_long_after_the_end_there_is_the_ledger(place, settings):
    settings.TAIL_SECONDS = 0
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    here.node.chunk(work, 0, sse(1))
    here.node.done(work, 1, b"data: [DONE]\n\n")
    await here.tasks[0]
    async with asyncio.timeout(10):
        while True:
            seen, end = await (await here.watch(work.job, secret)).rest()
            if [m["event"] for m in seen] != ["chunk", "end"]:
                break
            await asyncio.sleep(0.05)  # the watch's next look drops what was kept
    assert [m["event"] for m in seen] == ["gap", "end"]
    assert (seen[1]["state"], seen[1]["usage"]["total_tokens"], end.code) == ("completed", 10, 1000)


async def test_a_cancelled_job(place):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    here.node.chunk(work, 0, sse(1))
    watcher = await here.watch(work.job, secret)
    await watcher.until("chunk")
    headers = {"Authorization": f"Bearer {secret}"}
    deleting = asyncio.create_task(here.http.delete(f"/jobs/{work.job}", headers=headers))
    seen, end = await watcher.rest()
    assert seen[-1]["state"] == "cancelled"
    assert seen[-1]["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    assert end.code == 1000
    here.node.fail(work, Outcome.CANCELLED, 1)
    assert (await deleting).status_code == 200


async def test_one_that_breaks_off(place):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    here.node.chunk(work, 0, sse(1))
    here.node.fail(work, Outcome.ENGINE_DIED, 1, "it died")
    seen, _ = await (await here.watch(work.job, secret)).rest()
    assert chunks(seen) == [(1, 1)]
    assert (seen[-1]["state"], seen[-1]["error"]["code"]) == ("failed", "upstream_failed")


async def test_one_that_waits_says_where_it_stands(place):
    _, secret = await make("ann")
    here = await place(slots=1)
    work = await here.stream(secret)
    body = {**HELLO, "stream": True}
    headers = {"Authorization": f"Bearer {secret}"}
    here.tasks.append(asyncio.create_task(here.http.post(CHAT, json=body, headers=headers)))
    waiting = await until(lambda: here.node.wire.zrange("gt:board:waiting", 0, -1))
    job = waiting[0].decode().partition(":")[0]
    watcher = await here.watch(job, secret)
    assert await watcher.next() == {
        "seq": 0, "event": "state", "state": "pending", "node": None,
        "queue": {"position": 0, "estimated_wait_s": None},
    }  # fmt: skip
    here.node.done(work, 0, b"data: [DONE]\n\n")
    next_work = await here.node.take()
    await watcher.runs()
    here.node.done(next_work, 0, sse(1) + b"data: [DONE]\n\n")
    seen, _ = await watcher.rest()
    assert chunks(seen) == [(1, 1)]


async def test_a_whole_answer_has_states_alone(place):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret, stream=False)
    watcher = await here.watch(work.job, secret)
    await watcher.runs()
    here.node.done(work, 0, b'{"secret": 1}')
    seen, _ = await watcher.rest()
    assert [m["event"] for m in seen] == ["end"]
    assert "result" not in seen[0]


async def test_an_asynchronous_job_ends_with_its_result(place):
    _, secret = await make("ann")
    here = await place()
    headers = {"Authorization": f"Bearer {secret}"}
    job = (await here.http.post("/jobs", json=HELLO, headers=headers)).json()["id"]
    watcher = await here.watch(job, secret)
    assert (await watcher.next())["state"] == "pending"
    await Job.objects.filter(pk=job).aupdate(state="running")
    await watcher.runs()
    await Job.objects.filter(pk=job).aupdate(state="completed", result=b'{"text": "hi"}', http_status=200)
    seen, end = await watcher.rest()
    assert seen[-1]["result"] == {"text": "hi"}
    assert (seen[-1]["state"], seen[-1]["result_dropped"], end.code) == ("completed", False, 1000)
    assert (await Job.objects.aget(pk=job)).result_read_at is not None
    at_once, _ = await (await here.watch(job, secret)).rest()
    assert at_once == seen[-1:]


# -- who may watch ---------------------------------------------------------------------------------------


async def test_strangers_and_jobs_of_others_are_refused(place, caplog):
    (_, ann), (_, bob) = await make("ann"), await make("bob")
    here = await place()
    work = await here.stream(ann)
    with caplog.at_level(logging.INFO):
        assert await (await here.watch(work.job, bob)).refused() == (4404, "job_not_found")
        for unknown in ("0" * 32, "nonsense", f"{work.job}/x", ""):
            assert await (await here.watch(unknown, ann)).refused() == (4404, "job_not_found")
        assert await (await here.watch(work.job)).refused() == (4401, "invalid_api_key")
        assert await (await here.watch(work.job, "sk-gt-wrong")).refused() == (4401, "invalid_api_key")
    assert bob not in caplog.text
    assert "sk-gt-wrong" not in caplog.text


@pytest.mark.parametrize("query", ["?after=x", "?after=-1", "?after=", "?before=1", "?after=1&after=2"])
async def test_a_query_that_means_nothing_is_refused(place, query):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    assert await (await here.watch(work.job, secret, query=query)).refused() == (4400, "invalid_value")


@pytest.mark.parametrize("prefix", ["gputorrent-api-key.", "openai-insecure-api-key."])
@pytest.mark.parametrize("hosts", [["*"], ["testserver"]])
async def test_browsers_offer_the_key_as_a_subprotocol(place, settings, prefix, hosts):
    settings.ALLOWED_HOSTS = hosts
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    offers = (prefix + secret, "gputorrent")
    watcher = await here.watch(work.job, offers=offers, origin="https://elsewhere.example")
    assert watcher.subprotocol == "gputorrent"
    await watcher.runs()
    assert secret not in str(watcher.accepted)
    alone = await here.watch(work.job, offers=offers[:1])
    assert alone.subprotocol is None
    await alone.runs()


async def test_staff_keys_and_sessions_of_this_site_see_every_job(place, settings):
    (_, ann), (_, staff) = await make("ann"), await make("root", staff=True)
    user = await sync_to_async(User.objects.create_superuser)("admin", password="long enough to do")
    here = await place()
    work = await here.stream(ann)
    await (await here.watch(work.job, staff)).runs()
    browser = AsyncClient()
    await browser.aforce_login(user)
    cookie = f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"
    site = {"host": "testserver", "cookie": cookie}
    good = await here.watch(work.job, **site, origin="http://testserver")
    await good.runs()
    for origin in ("http://evil.example", "null", "http://testserver.evil.example", ""):
        other = await here.watch(work.job, **site, origin=origin)
        assert await other.refused() == (4401, "invalid_api_key")
    settings.CSRF_TRUSTED_ORIGINS = ["https://friend.example"]
    friend = await here.watch(work.job, **site, origin="https://friend.example")
    await friend.runs()
    await sync_to_async(User.objects.filter(pk=user.pk).update)(is_staff=False)
    former = await here.watch(work.job, **site, origin="http://testserver")
    assert await former.refused() == (4401, "invalid_api_key")


async def test_a_revoked_key_watches_no_longer(place):
    (_, secret), (_, staff) = await make("ann"), await make("root", staff=True)
    key, watching = await make("watcher", staff=True)
    here = await place()
    work = await here.stream(secret)
    watcher, other = await here.watch(work.job, watching), await here.watch(work.job, staff)
    await watcher.runs(), await other.runs()
    await sync_to_async(revoke)(key)
    seen, end = await watcher.rest()
    assert (seen, end.code, end.reason) == ([], 4401, "invalid_api_key")
    here.node.chunk(work, 0, sse(1))
    assert chunks([await other.next()]) == [(1, 1)]


async def test_sockets_are_bounded_for_each_key_and_in_all(place, settings):
    settings.SOCKETS_PER_KEY, settings.SOCKETS = 2, 3
    (_, ann), (_, bob) = await make("ann"), await make("bob", staff=True)
    here = await place()
    work = await here.stream(ann)
    first = await here.watch(work.job, ann)
    second = await here.watch(work.job, ann)
    await first.next(), await second.next()
    assert await (await here.watch(work.job, ann)).refused() == (4429, "too_many_sockets")
    other = await here.watch(work.job, bob)
    await other.next()
    assert await (await here.watch(work.job, bob)).refused() == (4429, "too_many_sockets")
    await first.leave()
    await (await here.watch(work.job, ann)).runs()


async def test_a_client_that_takes_nothing_is_closed_and_holds_nothing(place, settings):
    settings.SOCKET_STALL_SECONDS = 0.1
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    sent: list[dict[str, Any]] = []
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    heard.put_nowait({"type": "websocket.connect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "websocket.send":
            await asyncio.Event().wait()

    scope = {
        "type": "websocket", "path": f"/ws/jobs/{work.job}", "query_string": b"", "subprotocols": [],
        "headers": [(b"authorization", f"Bearer {secret}".encode())],
    }  # fmt: skip
    await asyncio.wait_for(here.app(scope, heard.get, send), 10)
    assert [m["type"] for m in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert (sent[-1]["code"], sent[-1]["reason"]) == (4408, "too_slow")
    here.node.done(work, 0, b"data: [DONE]\n\n")
    assert (await here.tasks[0]).status_code == 200


async def test_the_log_has_a_line_with_the_id_and_without_the_query(place, caplog):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    with caplog.at_level(logging.INFO, "gputorrent.access"):
        watcher = await here.watch(work.job, secret, query="?after=5", **{"x-request-id": "mine"})
        assert (b"x-request-id", b"mine") in watcher.accepted["headers"]
        await watcher.next()
        await watcher.leave()
    (fields,) = [r.fields for r in caplog.records if r.name == "gputorrent.access"]
    assert fields.pop("ms") > 0
    assert fields == {
        "method": "WEBSOCKET", "path": f"/ws/jobs/{work.job}", "status": 101, "closed": 1001,
        "request": "mine", "key": "ann",
    }  # fmt: skip


async def test_an_answer_that_is_no_json_is_told_as_text(place):
    _, secret = await make("ann")
    here = await place()
    work = await here.stream(secret)
    here.node.chunk(work, 0, b'data: 1},"event":"end"\xff\n\n')
    here.node.reply(done(work, 1, b"data: [DONE]\n\n"), to=work)
    seen, _ = await (await here.watch(work.job, secret)).rest()
    assert [m["event"] for m in seen if m["event"] != "state"] == ["chunk", "end"]
    assert seen[-2]["data"] == '1},"event":"end"\ufffd'
