"""Load of streams: so many connections ask again and again and note when each token came. One line of JSON.

    python -m benchmarks.speed.streams --port 8000 --streams 64 --tokens 50 --per-second 100 --seconds 5

A program of its own, of bare protocols on uvloop, so that it takes little of the core that it shares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any, cast

_TOKEN = b'{"content":" '
_END = b"0\r\n\r\n"


class Line(asyncio.Protocol):
    """One connection: sends the request, hands on what comes, sends it again until told to stop."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.begun = self.last = 0.0
        self.seen = 0
        self.over: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ok=False)

    def ask(self) -> asyncio.Future[None]:
        """Begin one stream; the future is its end."""
        self.over = asyncio.get_running_loop().create_future()
        self.begun, self.last, self.seen = time.perf_counter(), 0.0, 0
        self.transport.write(self.load.request)
        return self.over

    def data_received(self, data: bytes) -> None:
        tokens = data.count(_TOKEN)
        if tokens:
            now = time.perf_counter()
            if self.last:
                self.load.gaps.append(now - self.last)
            else:
                self.load.first.append(now - self.begun)
                self.load.open += 1
                self.load.most_open = max(self.load.most_open, self.load.open)
            self.last = now
            self.seen += tokens
            self.load.tokens += tokens
        if data.endswith(_END):
            self._end(ok=self.seen == self.load.args.tokens)

    def _end(self, *, ok: bool) -> None:
        if self.over is None or self.over.done():
            return
        self.load.ended += ok
        self.load.errors += not ok
        self.load.open -= bool(self.last)
        self.over.set_result(None)


class Load:
    """What all connections have seen. Times in seconds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.tokens = self.ended = self.errors = self.open = self.most_open = 0
        told = f"delay_ms={args.delay_ms:g},per_second={args.per_second:g}"
        body = json.dumps(
            {
                "model": args.model,
                "messages": [{"role": "user", "content": "Say the word token, and then again."}],
                "max_tokens": args.tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                "user": told,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{args.port}\r\n"
            f"Content-Type: application/json\r\nAuthorization: Bearer {args.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body

    async def run(self) -> dict[str, Any]:
        loop, args = asyncio.get_running_loop(), self.args
        lines = []
        for _ in range(args.streams):
            _, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", args.port)
            lines.append(line)
        begun = time.perf_counter()
        until = begun + args.seconds

        async def one(number: int, line: Line) -> None:
            await asyncio.sleep(args.ramp * number / len(lines) + random.uniform(0, args.jitter))
            while True:
                await line.ask()
                if args.once or time.perf_counter() >= until or line.transport.is_closing():
                    return

        await asyncio.gather(*(one(number, line) for number, line in enumerate(lines)))
        seconds = time.perf_counter() - begun
        for line in lines:
            line.transport.abort()
        return {
            "ended": self.ended,
            "errors": self.errors,
            "most_open": self.most_open,
            "tokens": self.tokens,
            "seconds": seconds,
            "tokens_per_s": self.tokens / seconds,
            "ttft_p50_ms": 1000 * statistics.median(self.first or [0.0]),
            "ttft_p99_ms": 1000 * _quantile(self.first, 0.99),
            "gap_p50_ms": 1000 * _quantile(self.gaps, 0.5),
            "gap_p99_ms": 1000 * _quantile(self.gaps, 0.99),
        }


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--key", default="none")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=50, help="of each stream")
    parser.add_argument("--per-second", type=float, default=50.0, help="tokens a second of each stream")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of the engine, before the first token")
    parser.add_argument("--seconds", type=float, default=5.0, help="streams begun by then end by themselves")
    parser.add_argument("--once", action="store_true", help="each connection asks once")
    parser.add_argument("--ramp", type=float, default=0.0, help="seconds over which the streams begin")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="at most so many seconds of random pause first"
    )
    args = parser.parse_args()
    import uvloop

    found = uvloop.run(Load(args).run())
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
