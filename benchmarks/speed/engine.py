"""A mock engine that costs next to nothing: vLLM's command line, paths and shapes, fixed words, no model.

Every stream of one rate gets its token in the same step, as a batch does. What an answer is like can be said
by the command line and, for one request, by its ``user`` field: ``delay_ms=50,per_second=100``.

    python engine.py -m vllm.entrypoints.openai.api_server --served-model-name M --port P [--delay-ms 50]

As ``--engine-python`` it wants a wrapper (see `wrapper`), for the agent gives it the rest of the line.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from pathlib import Path
from typing import Any, cast

import httptools
import msgspec
import uvloop

VERSION = "0.32.0+mock"
_COMPLETIONS = {b"/v1/chat/completions", b"/v1/completions"}


class _Options(msgspec.Struct):
    include_usage: bool = False


class _Asked(msgspec.Struct):
    stream: bool = False
    max_tokens: int = 16
    user: str = ""
    stream_options: _Options | None = None


_asked = msgspec.json.Decoder(_Asked)


def wrapper(path: Path) -> Path:
    """Write an executable at `path` that stands for the Python of an engine."""
    words = shlex.join([sys.executable, str(Path(__file__).resolve())])
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return path


class Engine:
    """Answers and the clock of the batch. `streams` are those that get a token at each step of one rate."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.streams: dict[float, set[Stream]] = {}
        self.made = 0
        self._loop = asyncio.get_running_loop()
        name = args.served_model_name
        made = f'"created":1764000000,"model":"{name}"'
        self.chunk_tail = (
            f'","object":"chat.completion.chunk",{made},"choices":[{{"index":0,"delta":'.encode()
        )
        self.usage_tail = f'","object":"chat.completion.chunk",{made},"choices":[],"usage":'.encode()
        self.body_tail = (
            f'","object":"chat.completion",{made},"choices":[{{"index":0,"message":{{"role":"assistant",'
            f'"content":"{" token" * 16}","refusal":null,"tool_calls":[]}},"logprobs":null,'
            '"finish_reason":"length","stop_reason":null}],"service_tier":null,"system_fingerprint":null,'
            '"usage":{"prompt_tokens":12,"total_tokens":28,"completion_tokens":16,'
            '"prompt_tokens_details":null}}'
        ).encode()

    def begin(self, stream: Stream, per_second: float) -> None:
        """The first token at once, the others with the steps of its rate."""
        if per_second <= 0:
            stream.rest()
            return
        if per_second not in self.streams:
            self.streams[per_second] = set()
            self._loop.call_later(1 / per_second, self._step, per_second, self._loop.time() + 1 / per_second)
        stream.step()
        if stream.left > 0:
            self.streams[per_second].add(stream)

    def _step(self, per_second: float, due: float) -> None:
        streams = self.streams[per_second]
        for stream in tuple(streams):
            stream.step()
            if stream.left <= 0:
                streams.discard(stream)
        due = max(due + 1 / per_second, self._loop.time())  # a clock that fell behind does not rush
        if streams:
            self._loop.call_at(due, self._step, per_second, due)
        else:
            del self.streams[per_second]

    def metrics(self) -> bytes:
        running = sum(map(len, self.streams.values()))
        return (
            f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:num_requests_waiting{{engine="0"}} 0\n'
            f'vllm:generation_tokens_total{{engine="0"}} {self.made}\n'
        ).encode()


class Stream:
    """One answer in server-sent events: a role, `left` tokens, usage if asked for, the end."""

    def __init__(self, engine: Engine, transport: asyncio.Transport, job: bytes, asked: _Asked) -> None:
        self._engine, self._transport = engine, transport
        self._id = b'data: {"id":"chatcmpl-' + job
        self._usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self.left = self._all = asked.max_tokens
        head = self._id + engine.chunk_tail
        self._role = (
            head + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
            b'"prompt_token_ids":null}\n\n'
        )
        token = head + b'{"content":" token"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
        self._token, self._framed = token, b"%x\r\n%b\r\n" % (len(token), token)
        self._begun = False

    def step(self) -> None:
        """One token more."""
        if self._transport.is_closing():
            self.left = 0
            return
        self.left -= 1
        self._engine.made += 1
        if self._begun and self.left > 0:
            self._transport.write(self._framed)
            return
        data = self._token if self._begun else self._role + self._token
        self._begun = True
        self._write(data, last=self.left <= 0)

    def rest(self) -> None:
        """All tokens at once."""
        self._engine.made += self.left
        data, self.left = self._role + self._token * self.left, 0
        self._write(data, last=True)

    def _write(self, data: bytes, *, last: bool) -> None:
        if last:
            head = self._id + self._engine.chunk_tail
            data += head + b'{},"logprobs":null,"finish_reason":"length","stop_reason":null}]}\n\n'
            if self._usage:
                told = b'{"prompt_tokens":12,"total_tokens":%d,"completion_tokens":%d}}\n\n'
                data += self._id + self._engine.usage_tail + told % (12 + self._all, self._all)
            data += b"data: [DONE]\n\n"
        end = b"0\r\n\r\n" if last else b""
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(data), data, end))


class Door(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url, self.job, self.parts = b"", b"", []  # type: ignore[var-annotated]

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self.job = value

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        path = self.url.partition(b"?")[0]
        if path in _COMPLETIONS:
            self._complete(b"".join(self.parts))
        elif path == b"/metrics":
            self._answer(self.engine.metrics(), b"text/plain; version=0.0.4")
        elif path == b"/v1/models":
            card = {"id": self.engine.args.served_model_name, "object": "model", "owned_by": "vllm"}
            cards = [{**card, "max_model_len": self.engine.args.max_model_len}]
            self._answer(msgspec.json.encode({"object": "list", "data": cards}))
        else:
            self._answer(b'{"version":"%b"}' % VERSION.encode())

    def _complete(self, body: bytes) -> None:
        engine, asked = self.engine, _asked.decode(body)
        told = dict(pair.split("=") for pair in asked.user.split(",")) if "=" in asked.user else {}
        delay = float(told.get("delay_ms", engine.args.delay_ms)) / 1000
        per_second = float(told.get("per_second", engine.args.per_second))
        self.count += 1
        job = self.job or b"%x-%x" % (id(self), self.count)
        call: Any
        if asked.stream:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            call = (engine.begin, Stream(engine, self.transport, job, asked), per_second)
        else:
            call = (self._answer, b'{"id":"chatcmpl-' + job + engine.body_tail)
        if delay:
            asyncio.get_running_loop().call_later(delay, *call)
        else:
            call[0](*call[1:])

    def _answer(self, body: bytes, kind: bytes = b"application/json") -> None:
        head = b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (kind, len(body)) + body)


async def serve(args: argparse.Namespace) -> None:
    """Until the process is ended."""
    loop, engine = asyncio.get_running_loop(), Engine(args)
    await loop.create_server(lambda: Door(engine), args.host, args.port, backlog=8192)
    print(f"INFO: mock engine {VERSION}: Application startup complete.", time.ctime(), flush=True)
    await loop.create_future()


def main() -> None:
    if "-c" in sys.argv:  # the agent asks this Python whether it has vLLM
        print(VERSION)
        return
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-m", dest="module")
    parser.add_argument("--served-model-name", default="mock")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=131072)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before anything of an answer")
    parser.add_argument(
        "--per-second", type=float, default=0.0, help="tokens for each stream (0: all at once)"
    )
    args, _ = parser.parse_known_args()
    uvloop.run(serve(args))


if __name__ == "__main__":
    main()
