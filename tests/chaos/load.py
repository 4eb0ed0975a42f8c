"""The load: so many clients at a time, each with one request after the other, in a thread of its own.

What each does is drawn beforehand from the seed; when it does it depends on what it meets.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.chaos.client import Answer, Broken, ask
from tests.chaos.record import Call, End, Kind
from tests.journeys.cluster import MODEL

CLIENTS = 16
"""They keep two thirds of the slots busy: queues form when a node is away, and asynchronous jobs, which stand
behind everybody who waits, are not kept from running for ever."""
THINK_SECONDS = 0.8
CALL_SECONDS = 60.0
"""Longer than any limit of the cluster (`cluster.FAST`): a call that takes this long hangs."""
JOB_SECONDS = 240.0
"""An asynchronous job may wait for longer: for its node, its queue and its database, one after the other."""
POLL_SECONDS = 1.0
DELETE_TRIES = 10

_KINDS = {Kind.CHAT_STREAM: 30, Kind.TEXT_STREAM: 15, Kind.CHAT: 20, Kind.TEXT: 10, Kind.JOB: 25}
ALLOWED = {
    (429, "queue_full"),
    (502, "upstream_failed"),
    (503, "broker_unavailable"),
    (503, "ledger_unavailable"),
    (503, "no_workers"),
    (503, "queue_timeout"),
    (503, "model_loading"),
    (503, "model_unavailable"),
    (504, "first_token_timeout"),
}
"""What a caller may be told while things break. Anything else is a failure."""
JOB_ENDS = {"upstream_failed", "expired"}
"""How an asynchronous job may end otherwise than completed (or cancelled, where it was)."""


class Load:
    """`start`, later `stop`, then `join`; `calls` has everything."""

    def __init__(self, ports: list[int], key: str, seed: int) -> None:
        self.calls: list[Call] = []
        self.polls = self.polls_refused = 0
        self._ports, self._key = ports, key
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new calls; those under way go on to their end."""
        self._stopping.set()

    def join(self, seconds: float) -> bool:
        """Whether every call has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def accepted(self) -> int:
        return sum(call.accepted for call in self.calls)

    # -- the clients -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._jobs: set[asyncio.Task[None]] = set()
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def _client(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 1))
        while not self._stopping.is_set():
            call = self._draw()
            self.calls.append(call)
            await self.make(call)
            await asyncio.sleep(self._random.uniform(0.0, THINK_SECONDS))
            if call.end in {End.UNREACHED, End.CUT, End.ERROR}:
                await asyncio.sleep(self._random.uniform(0.2, 1.0))

    def _draw(self) -> Call:
        draw = self._random
        kind = draw.choices(list(_KINDS), list(_KINDS.values()))[0]
        number, length = len(self.calls), draw.randint(3, 40)
        nonce = f"{draw.getrandbits(32):08x}"
        call = Call(number, kind, [f"{nonce}.{i}" for i in range(length)], draw.choice(self._ports))
        chance = draw.random()
        if kind == Kind.JOB and chance < 0.08:
            call.delete_after_tokens = draw.randint(0, length // 2)
        elif kind != Kind.JOB and chance < 0.08:
            call.leave_after_seconds = draw.uniform(0.0, 0.6)  # mostly while it waits, or before its first
        elif kind.streamed and chance < 0.16:
            call.leave_after_tokens = draw.randint(1, length)
        elif kind.streamed and chance < 0.22:
            call.delete_after_tokens = draw.randint(0, length // 2)
        return call

    async def make(self, call: Call) -> None:
        call.began = time.monotonic()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if call.leave_after_seconds is None:
                    await self._ask(call)
                else:
                    try:
                        async with asyncio.timeout(call.leave_after_seconds):
                            await self._ask(call)
                    except TimeoutError:
                        call.end = End.LEFT
        except TimeoutError:
            call.problems.append(f"it hung for {CALL_SECONDS:.0f} s")
        except Broken as e:
            call.end = End.CUT if e.sent else End.UNREACHED
            call.code = str(e)
        except Exception as e:  # what we did not think of is a finding, too
            call.problems.append(f"{type(e).__name__}: {e}")
        if call.kind != Kind.JOB or not call.job:
            call.ended = time.monotonic()

    async def _ask(self, call: Call) -> None:
        text = (
            {"messages": [{"role": "user", "content": call.right}]}
            if call.kind.chat
            else {"prompt": call.right}
        )
        body = {"model": MODEL, "max_tokens": len(call.words), "stream": call.kind.streamed, **text}
        path = "/v1/chat/completions" if call.kind.chat else "/v1/completions"
        path = "/jobs" if call.kind == Kind.JOB else path
        async with ask(call.port, "POST", path, self._key, body) as answer:
            call.status = answer.status
            call.take_id(answer.headers.get("x-request-id"))
            if answer.status == 202:
                call.take_id((await answer.json())["id"])
                task = asyncio.create_task(self._follow_job(call))
                self._jobs.add(task)
                task.add_done_callback(self._jobs.discard)
            elif answer.status != 200:
                self._refused(call, await answer.json())
            elif call.kind.streamed:
                await self._follow_stream(call, answer)
            else:
                self._take_whole(call, await answer.json())

    async def _follow_stream(self, call: Call, answer: Answer) -> None:
        last: Any = None
        async for event in answer.events():
            if last == "[DONE]" or (last and "error" in last):
                call.problems.append("something came after the end of the stream")
            last = event
            if event == "[DONE]":
                continue
            if "error" in event:
                call.code = event["error"]["code"]
                continue
            call.take_id(event["id"])
            for choice in event["choices"]:
                call.take_tokens((choice["delta"].get("content") or "") if call.kind.chat else choice["text"])
            got = len(call.tokens.split())
            if call.leave_after_tokens is not None and got >= call.leave_after_tokens:
                call.end = End.LEFT
                return
            if call.delete_after_tokens is not None and got >= call.delete_after_tokens and not call.deleted:
                await self._delete(call)
        if last == "[DONE]":
            call.end = End.COMPLETED
            self._whole(call)
        elif last and "error" in last:
            self._ended_with_error(call, {code for _, code in ALLOWED})
        else:
            call.end = End.CUT
            call.problems.append("the stream ended without [DONE] and without an error")

    def _take_whole(self, call: Call, body: Any) -> None:
        call.take_id(body["id"])
        choice = body["choices"][0]
        call.take_tokens(choice["message"]["content"] if call.kind.chat else choice["text"])
        call.end = End.COMPLETED
        self._whole(call)

    def _whole(self, call: Call) -> None:
        if call.tokens != call.right:
            call.problems.append(f"tokens are missing: {call.tokens[-60:]!r} of {call.right[-60:]!r}")

    def _refused(self, call: Call, body: Any) -> None:
        error = body.get("error") if isinstance(body, dict) else None
        call.code = (error or {}).get("code") or ""
        call.end = End.ERROR
        if (call.status, call.code) not in ALLOWED:
            call.problems.append(f"refused with {call.status}: {str(body)[:200]}")

    def _ended_with_error(self, call: Call, allowed: set[str]) -> None:
        call.end = End.ERROR
        allowed = allowed | {"cancelled"} if call.deleted else allowed
        if call.code not in allowed:
            call.problems.append(f"ended with {call.code!r}")

    # -- asynchronous jobs, and cancelling ---------------------------------------------------------------

    async def _follow_job(self, call: Call) -> None:
        try:
            async with asyncio.timeout(JOB_SECONDS):
                if call.delete_after_tokens is not None:
                    await asyncio.sleep(call.delete_after_tokens / 20)
                    await self._delete(call)
                async for record in self._records(call):
                    if record["status"] not in {"pending", "running"}:
                        self._job_ended(call, record)
                        break
        except TimeoutError:
            call.problems.append(f"no end after {JOB_SECONDS:.0f} s")
        except Exception as e:
            call.problems.append(f"{type(e).__name__}: {e}")
        call.ended = time.monotonic()

    async def _records(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """The job's record again and again, as often as it can be had."""
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * POLL_SECONDS)
            self.polls += 1
            try:
                async with ask(
                    self._random.choice(self._ports), "GET", f"/jobs/{call.job}", self._key
                ) as answer:
                    body = await answer.json()
            except Broken:
                self.polls_refused += 1
                continue
            if answer.status == 200:
                yield body
                continue
            self.polls_refused += 1
            code = ((body or {}).get("error") or {}).get("code")
            if (answer.status, code) not in ALLOWED:
                call.problems.append(f"asked for the record, was told {answer.status}: {str(body)[:200]}")

    def _job_ended(self, call: Call, record: dict[str, Any]) -> None:
        if record["status"] == "completed":
            call.end = End.COMPLETED
            if call.deleted and record["result_dropped"]:
                return  # it was done before it could be ended, and then its deletion is that of what is kept
            call.take_tokens(record["result"]["choices"][0]["message"]["content"])
            self._whole(call)
        elif record["status"] == "cancelled" and call.deleted:
            call.end, call.code = End.ERROR, "cancelled"
        else:
            call.code = (record["error"] or {}).get("code") or ""
            self._ended_with_error(call, JOB_ENDS)

    async def _delete(self, call: Call) -> None:
        """Cancel it, by any web process, which may not know it yet: records are behind while the database is
        away."""
        call.deleted = True  # even if the answer does not reach us
        for _ in range(DELETE_TRIES):
            try:
                async with ask(
                    self._random.choice(self._ports), "DELETE", f"/jobs/{call.job}", self._key
                ) as answer:
                    body = await answer.json()
            except Broken:
                return
            code = ((body or {}).get("error") or {}).get("code")
            if answer.status == 200 or (answer.status, code) in ALLOWED:
                return
            if answer.status != 404:
                break
            await asyncio.sleep(1)
        call.problems.append(f"asked to cancel, was told {answer.status}: {str(body)[:200]}")
