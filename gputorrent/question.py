"""One question to a chat model, asked as any OpenAI client would, with the answer's speed measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

QUESTION = "What is the capital of France?"
_LONGEST_SILENCE = 180.0


class NoAnswer(Exception):
    """The request failed or its stream did not end as it should. The message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `tokens_per_s` counts from the first token to the last."""

    text: str
    ttft_ms: float
    tokens: int
    tokens_per_s: float


def ask(base_url: str, key: str, model: str, show: Callable[[str], None]) -> Answer:
    """Stream an answer to `QUESTION`; `show` gets each piece of text as it comes. Raises NoAnswer."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.monotonic()
    first = last = 0.0
    pieces: list[str] = []
    tokens = 0
    ended = False
    try:
        with httpx.stream(
            "POST",
            f"{base_url}/v1/chat/completions",
            json=request,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(_LONGEST_SILENCE, connect=10.0),
            trust_env=False,  # it is on this machine: no proxy
        ) as response:
            if response.status_code != 200:
                response.read()
                raise NoAnswer(f"HTTP {response.status_code}: {response.text[:500]}")
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    ended = True
                    break
                event = json.loads(data)
                if "error" in event:
                    raise NoAnswer(f"the stream ended with an error: {json.dumps(event['error'])[:500]}")
                for choice in event.get("choices", ()):
                    text = choice.get("delta", {}).get("content") or ""
                    if text:
                        last = time.monotonic()
                        first = first or last
                        pieces.append(text)
                        show(text)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
        raise NoAnswer(f"{type(e).__name__}: {e}") from None
    if not ended:
        raise NoAnswer("the stream broke off before [DONE]")
    if not pieces:
        raise NoAnswer("the answer is empty")
    per_second = (tokens - 1) / (last - first) if tokens > 1 and last > first else 0.0
    return Answer("".join(pieces), (first - started) * 1000, tokens, per_second)
