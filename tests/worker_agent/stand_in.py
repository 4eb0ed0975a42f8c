"""A stand-in coordinator: the agent's four HTTP paths, and the coordinator's end of the streams.

It decodes with the contract's own types, so a message that the real one would refuse fails here too. What it
answers can be changed while it runs: `refuse`, `access`, `drain`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import redis

from worker_agent import contract
from worker_agent.contract import (
    BeatReply,
    Chunk,
    Done,
    Failed,
    Goodbye,
    Heartbeat,
    RedisAccess,
    Refused,
    Register,
    Registered,
    Report,
    Work,
)

TOKEN = "the-enrolment-token"


class StandIn:
    """Listens on a free loopback port from the start until `close`."""

    def __init__(self, redis_url: str, *, heartbeat_seconds: float = 0.2, port: int = 0) -> None:
        self.redis_url = redis_url
        self.heartbeat_seconds = heartbeat_seconds
        self.access = RedisAccess(redis_url, "", "")
        self.new_access: RedisAccess | None = None
        self.secrets: dict[str, str] = {}
        self.incarnation = 0
        self.refuse: dict[str, tuple[int, Refused]] = {}
        self.drain = False
        self.pinned: list[str] = []
        self.registers: list[Register] = []
        self.beats: list[Heartbeat] = []
        self.goodbyes: list[Goodbye] = []
        self.reports: list[Report] = []
        self.unhealthy_reports = 0  # answer so many reports with 503 first
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = outer.answer(self.path, body, self.headers.get("authorization", ""))
                with contextlib.suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # an agent may stop meanwhile
                    self.send_response(status)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: bytes, bearer: str) -> tuple[int, bytes]:
        if path in self.refuse:
            status, refused = self.refuse[path]
            return status, msgspec.json.encode(refused)
        if path == contract.REGISTER:
            return self._register(msgspec.json.decode(body, type=Register))
        node, _, secret = bearer.removeprefix("Bearer ").partition(".")
        if self.secrets.get(node) != secret:
            return 401, msgspec.json.encode(Refused("unknown_node", "this node is not known"))
        if path == contract.HEARTBEAT:
            self.beats.append(msgspec.json.decode(body, type=Heartbeat))
            reply = BeatReply("online", self.drain, self.new_access, self.pinned)
            self.new_access = None
            return 200, msgspec.json.encode(reply)
        if path == contract.GOODBYE:
            self.goodbyes.append(msgspec.json.decode(body, type=Goodbye))
            return 204, b""
        if path == contract.REPORT:
            if self.unhealthy_reports:
                self.unhealthy_reports -= 1
                return 503, b""
            self.reports.append(msgspec.msgpack.decode(body, type=Report))
            return 204, b""
        return 404, b""

    def _register(self, message: Register) -> tuple[int, bytes]:
        self.registers.append(message)
        secret = ""
        if message.node is not None:
            if self.secrets.get(message.node) != message.secret:
                return 404, msgspec.json.encode(Refused("unknown_node", "this node is not known"))
            node = message.node
        elif message.token == TOKEN:
            node, secret = secrets.token_hex(8), secrets.token_hex(16)
            self.secrets[node] = secret
        else:
            return 401, msgspec.json.encode(Refused("bad_token", "the token is wrong: make a new one"))
        self.incarnation += 1
        registered = Registered(
            node=node,
            incarnation=self.incarnation,
            state="online",
            redis=self.access,
            heartbeat_seconds=self.heartbeat_seconds,
            lease_refresh_seconds=0.2,
            lease_seconds=2.0,
            secret=secret,
        )
        return 200, msgspec.json.encode(registered)

    @property
    def node(self) -> str:
        return next(reversed(self.secrets))

    def states(self) -> dict[str, str]:
        """Of each model, as the last beat told."""
        return {model.name: model.state.value for model in self.beats[-1].models} if self.beats else {}

    def wait_for(self, what: Any, seconds: float = 20.0) -> None:
        """Until `what()` is true; fails the test otherwise."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"waited in vain; beats: {self.beats[-1:]}"
            time.sleep(0.02)

    def wait_ready(self, *models: str, seconds: float = 20.0) -> None:
        self.wait_for(lambda: self._is_ready(models), seconds)

    def _is_ready(self, models: tuple[str, ...]) -> bool:
        states = self.states()
        connected = bool(self.beats) and self.beats[-1].redis_connected
        return connected and all(states.get(model) == "ready" for model in models)


def work(model: str = "m", prompt: str = "red green blue", **changes: Any) -> Work:
    """A chat completion with an answer of 6 tokens, streamed."""
    tokens = changes.pop("tokens", 6)
    stream = changes.get("stream", True)
    hide = changes.get("hide_usage", False)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    body |= changes.pop("body", {})
    fields: dict[str, Any] = {
        "job": secrets.token_hex(16),
        "attempt": 1,
        "lease": secrets.token_bytes(16),
        "reply": "web1",
        "model": model,
        "path": "/v1/chat/completions",
        "body": json.dumps(body).encode(),
        "stream": stream,
        "hide_usage": hide,
        "first_token_seconds": 10.0,
        "stall_seconds": 10.0,
        "total_seconds": 30.0,
    }
    return Work(**{**fields, **changes})


def text_of(data: bytes) -> str:
    """The words in the events of a stream."""
    words = []
    for event in data.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in json.loads(event[6:])["choices"]:
                words.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
    return "".join(words)


class WebProcess:
    """The coordinator's end of the streams: delivers work, reads one reply stream."""

    def __init__(self, client: redis.Redis, web: str = "web1") -> None:
        self.client, self.web = client, web
        self.key = contract.reply_key(web)
        self.cursor: Any = "0-0"
        self.replies: list[contract.Reply] = []
        self.entries = 0
        self.open()

    def open(self) -> None:
        """Make the stream, as a web process does at its start: agents only append to one that exists."""
        self.client.xtrim(self.key, maxlen=0) if self.client.exists(self.key) else None
        entry = self.client.xadd(self.key, {b"m": contract.encode([])})
        self.client.xdel(self.key, entry)

    def deliver(self, node: str, item: Work) -> None:
        self.client.xadd(contract.inbox_key(node), {b"m": contract.encode(item)})

    def control(self, node: str, message: contract.Control) -> None:
        self.client.xadd(contract.control_key(node), {b"m": contract.encode(message)})

    def read(self) -> None:
        found: Any = self.client.xread({self.key: self.cursor}, block=50)
        for _stream, entries in found or ():
            for entry, fields in entries:
                self.cursor = entry
                self.entries += 1
                self.replies += contract.decode_replies(fields[b"m"])

    def of(self, item: Work) -> list[contract.Reply]:
        return [it for it in self.replies if (it.job, it.attempt) == (item.job, item.attempt)]

    def last_of(self, item: Work) -> Done | Failed | None:
        found = self.of(item)
        return found[-1] if found and not isinstance(found[-1], Chunk) else None

    def wait(self, *items: Work, seconds: float = 20.0) -> list[Done | Failed]:
        """Read until every item has its last reply."""
        deadline = time.monotonic() + seconds
        while not all(self.last_of(item) for item in items):
            assert time.monotonic() < deadline, f"no last reply; got {self.replies[-3:]}"
            self.read()
        return [last for item in items if (last := self.last_of(item))]

    def wait_chunk(self, item: Work, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.of(item):
            assert time.monotonic() < deadline, "no chunk"
            self.read()

    def text(self, item: Work) -> str:
        replies = self.of(item)
        data = b"".join(it.data for it in replies if isinstance(it, Chunk))
        return text_of(data + b"".join(it.body for it in replies if isinstance(it, Done)))
