"""A stand-in for vLLM's OpenAI server: its command line, its shapes, no model.

Run as ``fake_vllm.py -m vllm.entrypoints.openai.api_server --model M --served-model-name N --port P``; what
it does not know it ignores. The words of the prompt come back, one a token, round and round, so that a test
can tell whose answer it holds. Knobs, each also as ``FAKE_VLLM_<KNOB>``: see `knobs`. `write_wrapper` makes
a file that passes for the Python of an engine (``--engine-python``).

One loop steps every request in the batch by one token, as continuous batching does, so that thousands of
tokens a second cost little: benchmarks use it as the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httptools

if not __package__:  # run as a program, from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import fake_responses

VERSION = "0.32.0+fake"
DONE = b"data: [DONE]\n\n"
RESPONSES = "/v1/responses"
COMPLETIONS = {"/v1/completions", "/v1/chat/completions", RESPONSES}


def knobs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fake_vllm", allow_abbrev=False)

    def knob(flag: str, kind: Any, default: Any, text: str) -> None:
        value = os.environ.get("FAKE_VLLM_" + flag[2:].upper().replace("-", "_"))
        parser.add_argument(flag, type=kind, default=kind(value) if value else default, help=text)

    def switch(flag: str, text: str) -> None:
        value = os.environ.get("FAKE_VLLM_" + flag[2:].upper().replace("-", "_"), "")
        parser.add_argument(flag, action="store_true", default=value not in {"", "0"}, help=text)

    knob("--load-seconds", float, 0.0, "time before the port opens")
    knob("--tokens", int, 0, "most tokens an answer has (0: as many as max_tokens allows)")
    knob("--per-second", float, 0.0, "tokens a second for each request (0: as fast as it goes)")
    knob("--first-seconds", float, 0.0, "time before a request's first token")
    knob("--memory-mb", int, 0, "memory to hold")
    knob("--die-after-tokens", int, 0, "exit hard once this process has made so many (the warm-up's counts)")
    knob("--die-on-word", str, "", "exit hard at the first token of an answer to a prompt with this word")
    knob("--hang-after-tokens", int, 0, "make no more once this process has made so many; health stays 200")
    knob("--fail-load", str, "", "print this as the reason and exit instead of serving")
    knob("--error-status", int, 0, "answer every completion with this status")
    knob("--says", str, "", "the words of every answer, once, in place of the prompt's")
    switch("--ignore-abort", "go on with a request whose caller has left")
    switch("--busy", "answer every completion with 503")
    knob("--for-model", str, "", "the other knobs are for this model only")
    switch("--ignore-request-id", "make response ids of our own, as other servers do")
    switch("--sleep-mode", "offer /sleep and /wake_up, as vLLM does with --enable-sleep-mode in its dev mode")
    switch("--children", "start a child and a grandchild that ignore SIGTERM, as a real engine has workers")
    switch("--stream-error", "end a stream after its first token with an error event")
    switch("--embeds", "be a model for embeddings: no path makes tokens")
    switch("--cut-stream", "end a stream after its first token with nothing")
    return parser


def write_wrapper(path: Path, *flags: str, env: dict[str, str] | None = None) -> Path:
    """Write an executable at `path` that stands for an engine's Python, with these knobs set."""
    words = [sys.executable, str(Path(__file__).resolve()), *flags]
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env or {}).items())
    path.write_text(f'#!/bin/sh\n{settings}exec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def said(messages: list[dict[str, Any]]) -> list[str]:
    """The text of each message; one may have none, or parts."""
    contents = [message.get("content") or "" for message in messages]
    return [c if isinstance(c, str) else " ".join(part.get("text") or "" for part in c) for c in contents]


class Refusal(Exception):
    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Request:
    """One completion in the batch (or waiting for it)."""

    breaks_off = False
    """What fails in the middle of a stream: it simply ends, instead of saying so."""

    def __init__(self, engine: Engine, door: Door, body: dict[str, Any], chat: bool, request_id: str) -> None:
        self.engine, self.door, self.chat = engine, door, chat
        self.prompts, self.prompt_tokens = self._prompts(body)
        self.words = [word for words in self.prompts for word in words]
        self.n = int(body.get("n") or 1)
        self.choices = range(self.n * len(self.prompts))  # those of the first prompt come first
        self.echo = bool(body.get("echo")) and not chat
        self.stream = bool(body.get("stream"))
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.logprobs = bool(body.get("logprobs"))
        self.tool = self._tool(body)
        self.document = self._document(body)
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or (None if chat else 16)
        longest = self.prompt_tokens if chat else max(map(len, self.prompts))
        room = engine.args.max_model_len - longest
        if asked is not None and (asked < 1 or asked > room):
            raise Refusal(400, f"max_tokens={asked} does not fit: the context holds {room} more tokens")
        self.answer = engine.args.says.split()
        most = min(asked or room, engine.args.tokens or len(self.answer) or asked or 64)
        self.finish = "stop" if asked is None or most < asked else "length"
        stop = body.get("stop") or []
        stops = {stop} if isinstance(stop, str) else set(stop)
        if stops and (end := [i for i in range(1, most) if self.words[i % len(self.words)] in stops]):
            most, self.finish = end[0], "stop"
        self.total = 1 if self.tool or self.document else most
        if self.document:
            self.finish = "stop"
        self.made = 0
        self.begun = False
        self.gone = False
        self.not_before = time.monotonic() + (engine.args.first_seconds if engine.total else 0.0)
        name = body["model"]
        self.id = ("chatcmpl-" if chat else "cmpl-") + request_id
        kind = "chat.completion.chunk" if chat else "text_completion"
        self.head = f'{{"id":"{self.id}","object":"{kind}","created":{int(time.time())},"model":"{name}",'
        self.model = name

    @staticmethod
    def _prompts(body: dict[str, Any]) -> tuple[list[list[str]], int]:
        """The words of each prompt, and how many there are in all; a token id is a word."""
        if "messages" in body:
            texts = said(body["messages"])
            return [texts[-1].split() or ["nothing"]], sum(len(text.split()) for text in texts) or 1
        prompt = body.get("prompt")
        if not prompt:
            raise Refusal(400, "prompt is missing or empty", param="prompt")
        several = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        prompts = [
            (each.split() if isinstance(each, str) else [str(token) for token in each]) or ["nothing"]
            for each in several
        ]
        return prompts, sum(map(len, prompts))

    @staticmethod
    def _tool(body: dict[str, Any]) -> str | None:
        tools = body.get("tools")
        return tools[0]["function"]["name"] if tools and body.get("tool_choice", "auto") != "none" else None

    def _document(self, body: dict[str, Any]) -> str:
        """The answer where JSON is asked for: the prompt in each text of the schema, 1 for each integer."""
        form = body.get("response_format") or {}
        if form.get("type") not in {"json_object", "json_schema"}:
            return ""
        echo = " ".join(self.words)
        schema = (form.get("json_schema") or {}).get("schema") or {"properties": {"echo": {"type": "string"}}}
        values: dict[str, Any] = {"string": echo, "integer": 1, "number": 1.5, "boolean": True, "array": []}
        return json.dumps({n: values.get(part.get("type")) for n, part in schema["properties"].items()})

    # -- one token -------------------------------------------------------------------------------------
    def step(self) -> bool:
        """Make one token for each choice; True once the request has ended."""
        if self.stream and not self.begun:
            self.begun = True
            self.door.start_stream()
            if opening := self._opening():
                self.door.write_chunk(opening)
        position = self.made
        self.made += 1
        last = self.made >= self.total
        if self.stream:
            finish = ("tool_calls" if self.tool else self.finish) if last else None
            data = b"".join(self._piece(i, self._token(i, position), finish) for i in self.choices)
            if self.engine.args.cut_stream or (self.engine.args.stream_error and self.breaks_off):
                self.door.write_chunk(data)
                self.door.transport.close()
                return True
            if self.engine.args.stream_error:
                error = {
                    "error": {"message": "the engine stumbled", "type": "InternalServerError", "code": 500}
                }
                self.door.end_stream(data + b"data: " + json.dumps(error).encode() + b"\n\n" + DONE)
                return True
            if last:
                self.door.end_stream(data + self._closing())
            else:
                self.door.write_chunk(data)
        elif last:
            self.door.answer(200, self._whole())
        return last

    def _opening(self) -> bytes:
        if not self.chat:
            return b""
        return b"".join(self._delta(i, {"role": "assistant", "content": ""}) for i in self.choices)

    def _closing(self) -> bytes:
        return (self._usage_event() if self.include_usage else b"") + DONE

    def _token(self, index: int, position: int) -> str:
        if self.document:
            return self.document
        words = self.answer or self.prompts[index // self.n]
        word = words[position % len(words)]
        if position == 0:
            return f"{' '.join(words)} {word}" if self.echo else word
        return " " + word

    def _piece(self, index: int, token: str, finish: str | None) -> bytes:
        if not self.chat:
            body = (
                f'"choices":[{{"index":{index},"text":{json.dumps(token)},"logprobs":{self._logprobs(token)},'
                f'"finish_reason":{json.dumps(finish)},"stop_reason":null}}]}}'
            )
            return f"data: {self.head}{body}\n\n".encode()
        delta = {"tool_calls": [self._call()]} if self.tool else {"content": token}
        return self._delta(index, delta, finish, self._logprobs(token))

    def _delta(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: str = "null"
    ) -> bytes:
        return (
            f'data: {self.head}"choices":[{{"index":{index},"delta":{json.dumps(delta)},'
            f'"logprobs":{logprobs},"finish_reason":{json.dumps(finish)}}}]}}\n\n'
        ).encode()

    def _logprobs(self, token: str) -> str:
        if not self.logprobs:
            return "null"
        if self.chat:
            return json.dumps(
                {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
            )
        return json.dumps(
            {"tokens": [token], "token_logprobs": [-0.5], "text_offset": [0], "top_logprobs": None}
        )

    def _call(self) -> dict[str, Any]:
        arguments = json.dumps({"echo": " ".join(self.words)})
        call = {"name": self.tool, "arguments": arguments}
        return {"id": "call_" + self.id[-8:], "type": "function", "index": 0, "function": call}

    def _usage(self) -> dict[str, int]:
        made = self.total * len(self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + made,
            "completion_tokens": made,
        }

    def _usage_event(self) -> bytes:
        return f'data: {self.head}"choices":[],"usage":{json.dumps(self._usage())}}}\n\n'.encode()

    def _whole(self) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index in self.choices:
            text = "".join(self._token(index, position) for position in range(self.total))
            choice: dict[str, Any] = {"index": index, "finish_reason": self.finish, "stop_reason": None}
            choice["logprobs"] = json.loads(self._logprobs(text))
            if not self.chat:
                choice["text"] = text
            elif self.tool:
                choice["message"] = {"role": "assistant", "content": None, "tool_calls": [self._call()]}
                choice["finish_reason"] = "tool_calls"
            else:
                choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
            choices.append(choice)
        kind = "chat.completion" if self.chat else "text_completion"
        created = int(time.time())
        return {
            "id": self.id,
            "object": kind,
            "created": created,
            "model": self.model,
            "choices": choices,
            "usage": self._usage(),
        }


class Response(Request):
    """One for `/v1/responses`: the same tokens, told by typed events."""

    breaks_off = True

    def __init__(self, engine: Engine, door: Door, body: dict[str, Any], request_id: str) -> None:
        try:
            super().__init__(engine, door, fake_responses.as_chat(body), True, request_id)
        except fake_responses.Unanswerable as e:
            raise Refusal(400, str(e), param=e.param) from None
        self.telling = fake_responses.Telling(body, request_id)
        self.logprobs = "message.output_text.logprobs" in (body.get("include") or ())
        if self.stream:  # vLLM says so before it has read the prompt
            self.begun = True
            door.start_stream()
            door.write_chunk(self.telling.opening())

    def _piece(self, index: int, token: str, finish: str | None) -> bytes:
        piece = self._call()["function"]["arguments"] if self.tool else token
        told = [{"token": token, "logprob": -0.5, "bytes": [], "top_logprobs": []}] if self.logprobs else []
        return self.telling.delta(piece, self.tool, told)

    def _closing(self) -> bytes:
        return self.telling.closing(self.tool, "stop" if self.tool else self.finish, self._usage())

    def _whole(self) -> dict[str, Any]:
        text = "".join(self._token(0, position) for position in range(self.total))
        text = self._call()["function"]["arguments"] if self.tool else text
        return self.telling.whole(text, self.tool, "stop" if self.tool else self.finish, self._usage())


class Engine:
    """The batch: one loop that steps all running requests together."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.aborted = self.total = self.tokens = 0
        self.ballast = bytearray()
        self.asleep: set[str] = set()
        self.unread = False
        self.words: list[str] = []
        self._news = asyncio.Event()

    def add(self, request: Request) -> None:
        self.total += 1
        self.waiting.append(request)
        self._news.set()

    def abort(self, request: Request) -> None:
        self.aborted += 1
        request.gone = True
        if self.args.ignore_abort:
            return
        for batch in (self.running, self.waiting):
            if request in batch:
                batch.remove(request)

    async def run(self) -> None:
        pause = 1 / self.args.per_second if self.args.per_second else 0
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self.running and not self.waiting:
                self._news.clear()
                await self._news.wait()
                due = loop.time()
            room = self.args.max_num_seqs - len(self.running)
            self.running += self.waiting[:room]
            del self.waiting[:room]
            stepped = self._step_all()
            due = max(due + (pause if stepped else max(pause, 0.01)), loop.time() - pause)
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _step_all(self) -> bool:
        """One token for each request in the batch; False if none was due one."""
        stepped = False
        args, now = self.args, time.monotonic()
        for request in list(self.running):
            if request.not_before > now:
                continue
            if args.hang_after_tokens and self.tokens >= args.hang_after_tokens:
                return stepped
            if args.die_after_tokens and self.tokens >= args.die_after_tokens:
                os._exit(9)
            if args.die_on_word and args.die_on_word in request.words:
                os._exit(9)
            if request.gone:
                request.made += 1
                ended = request.made >= request.total
            else:
                ended = request.step()
            self.tokens += 1
            stepped = True
            if ended:
                self.running.remove(request)
                request.door.ended(request)
        return stepped

    def tokenizer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A word is a token; its id is its place among the words that came so far."""
        if "tokens" in body:
            if any(token >= len(self.words) for token in body["tokens"]):
                raise Refusal(400, "a token id is out of the vocabulary", param="tokens")
            return {"prompt": " ".join(self.words[token] for token in body["tokens"])}
        texts = [body["prompt"]] if body.get("prompt") is not None else said(body["messages"])
        words = " ".join(texts).split()
        self.words += [word for word in dict.fromkeys(words) if word not in self.words]
        told = {"count": len(words), "max_model_len": self.args.max_model_len}
        strings = words if body.get("return_token_strs") else None
        return {**told, "tokens": [self.words.index(word) for word in words], "token_strs": strings}

    def sleep_mode(self, path: str, url: str) -> dict[str, Any]:
        """Level 2 is awake only once its weights were read again, between the two parts of waking."""
        if path == "/sleep":
            self.asleep = {"kv_cache", "weights"} if "level=2" in url else {"all"}
            self.ballast.clear()
        elif path == "/wake_up":
            self.asleep -= {url.rpartition("tags=")[2]} if "tags=" in url else self.asleep
            self.unread = "tags=weights" in url or self.unread
        elif path == "/collective_rpc":
            self.unread = False
        return {"is_sleeping": bool(self.asleep)}

    def stats(self) -> dict[str, Any]:
        return {
            "running": len(self.running), "waiting": len(self.waiting), "aborted": self.aborted,
            "total": self.total, "tokens": self.tokens, "pid": os.getpid(),
        }  # fmt: skip

    def metrics(self) -> str:
        label = f'{{engine="0",model_name="{self.args.served_model_name}"}}'
        usage = min(1.0, len(self.running) / max(1, self.args.max_num_seqs))
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{label} {len(self.running)}.0\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{label} {len(self.waiting)}.0\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\n"
            f"vllm:kv_cache_usage_perc{label} {usage}\n"
            "# TYPE vllm:generation_tokens counter\n"
            f"vllm:generation_tokens_total{label} {self.tokens}.0\n"
        )


class Door(asyncio.Protocol):
    """One connection: parses requests, writes answers."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.request: Request | None = None
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.request is not None:
            self.engine.abort(self.request)
            self.request = None

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        method, path = self.parser.get_method().decode(), self.url.decode().split("?")[0]
        try:
            self._route(method, path, b"".join(self.parts))
        except Refusal as refusal:
            self.answer(refusal.status, refusal.body)

    def _route(self, method: str, path: str, body: bytes) -> None:
        args = self.engine.args
        if method == "POST" and path in COMPLETIONS and not args.embeds:
            self._complete(path, body)
        elif method == "POST" and path == "/v1/embeddings":
            self._embed(self._parse(body))
        elif method == "POST" and path in {"/tokenize", "/detokenize"}:
            self.answer(200, self.engine.tokenizer(self._parse(body)))
        elif path == "/health":
            self.answer(200, b"", b"text/plain")
        elif path == "/version":
            self.answer(200, {"version": VERSION})
        elif path == "/v1/models":
            card = {"id": args.served_model_name, "object": "model", "owned_by": "vllm", "root": args.model}
            self.answer(200, {"object": "list", "data": [{**card, "max_model_len": args.max_model_len}]})
        elif path == "/metrics":
            self.answer(200, self.engine.metrics().encode(), b"text/plain; version=0.0.4; charset=utf-8")
        elif args.sleep_mode and path in {"/is_sleeping", "/sleep", "/wake_up", "/collective_rpc"}:
            self.answer(200, self.engine.sleep_mode(path, self.url.decode()))
        elif path == "/fake/stats":
            self.answer(200, self.engine.stats())
        else:
            self.answer(404, {"detail": "Not Found"})

    def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(body)
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None
        name = parsed.get("model")
        if name != self.engine.args.served_model_name:
            raise Refusal(404, f"The model `{name}` does not exist.", "NotFoundError", "model")
        return parsed

    def _complete(self, path: str, body: bytes) -> None:
        args = self.engine.args
        if self.engine.asleep or self.engine.unread:
            raise Refusal(500, "the engine sleeps", "InternalServerError")
        warm_up = self.engine.total == 0  # the first request proves that the engine works: knobs spare it
        if args.busy and not warm_up:
            raise Refusal(503, "the engine is full", "ServiceUnavailableError")
        if args.error_status and not warm_up:
            raise Refusal(args.error_status, "as asked", "InternalServerError")
        parsed = self._parse(body)
        if not 0 <= (parsed.get("temperature") or 0) <= 100:
            raise Refusal(400, "temperature must be non-negative", param="temperature")
        told = b"" if args.ignore_request_id else self.headers.get(b"x-request-id", b"")
        request_id = told.decode() or uuid.uuid4().hex
        if path == RESPONSES:
            self.request = Response(self.engine, self, parsed, request_id)
        else:
            self.request = Request(self.engine, self, parsed, "chat" in path, request_id)
        self.engine.add(self.request)

    def _embed(self, body: dict[str, Any]) -> None:
        given = body["input"]
        inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        lengths = [len(i.split()) if isinstance(i, str) else len(i) for i in inputs]
        if max(lengths) > self.engine.args.max_model_len:
            most = self.engine.args.max_model_len
            raise Refusal(400, f"This model's maximum context length is {most} tokens.", param="input")
        data = []
        for index, length in enumerate(lengths):
            # Its number and its length, so that a test can tell whose it is; these fit float32 exactly.
            vector = ([float(index), float(length), 0.5, -0.5] * 256)[: body.get("dimensions") or 4]
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            told: Any = packed if body.get("encoding_format") == "base64" else vector
            data.append({"object": "embedding", "index": index, "embedding": told})
        used = sum(lengths)
        usage = {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0}
        head = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        self.answer(200, {**head, "model": body["model"], "data": data, "usage": usage})

    # -- answers ---------------------------------------------------------------------------------------
    def ended(self, request: Request) -> None:
        if self.request is request:
            self.request = None

    def answer(
        self, status: int, body: bytes | dict[str, Any], content_type: bytes = b"application/json"
    ) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (
            status,
            content_type,
            len(payload),
        )
        self.transport.write(head + payload)

    def start_stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def write_chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))


def sleep_for_ever(generations: int) -> None:
    """What a real engine's workers are to whoever has to end them: deaf to SIGTERM, in sessions apart."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if generations > 1:
        subprocess.Popen([sys.executable, __file__, "--worker", str(generations - 1)], start_new_session=True)
    while True:
        time.sleep(60)


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(f"INFO 11-23 12:00:00 [api_server.py:1] vLLM API server version {VERSION}", flush=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), args.load_seconds)
        return
    if args.fail_load:
        print(
            f"(EngineCore pid={os.getpid()}) ERROR 11-23 12:00:01 [core.py:842] ValueError: {args.fail_load}"
        )
        print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        sys.exit(1)
    engine = Engine(args)
    engine.ballast = bytearray(os.urandom(1 << 20) * args.memory_mb)
    stepping = asyncio.create_task(engine.run())
    server = await loop.create_server(lambda: Door(engine), args.host, args.port, backlog=1024)
    print("INFO:     Application startup complete.", flush=True)
    await stop.wait()
    server.close()
    stepping.cancel()


def main() -> None:
    argv = sys.argv[1:]
    if argv[:1] == ["--worker"]:
        sleep_for_ever(int(argv[1]))
    if "-c" in argv:  # the agent asks this Python whether it has vLLM
        if os.environ.get("FAKE_VLLM_MISSING"):
            sys.exit(3)
        print(VERSION)
        return
    parser = knobs()
    parser.add_argument("-m", dest="module")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--served-model-name", default=None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    args, _unknown = parser.parse_known_args(argv)
    args.served_model_name = args.served_model_name or args.model
    if args.for_model and args.for_model != args.served_model_name:
        vars(args).update(vars(knobs().parse_args([])))
    if args.children:
        subprocess.Popen([sys.executable, __file__, "--worker", "2"])
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(args))
    else:
        uvloop.run(serve(args))


if __name__ == "__main__":
    main()
