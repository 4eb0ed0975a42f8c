"""What the Python programs share: the plan they are given, the cases they go through, what they print.

A program gets one JSON object on its standard input: `url` (with /v1), `key`, `limited_key` (one request at
once), and names of models, see `world`. It prints ``{"case": NAME, "saw": {...}}`` for each case, or
``{"case": NAME, "raised": TRACEBACK}`` where the client raised what the case did not expect.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import openai

PLAN: dict[str, Any] = json.loads(sys.stdin.read())
URL, KEY = PLAN["url"], PLAN["key"]
FAST, SLOW, CUT = PLAN["fast"], PLAN["slow"], PLAN["cut"]
GONE, UNLOADABLE = PLAN["gone"], PLAN["unloadable"]
NO_MODEL = "no-such-model"
WRONG_KEY = "sk-gt-wrong"
MOST_RETRIES = 5
CATCHABLE = ("openai", "litellm")

WEATHER = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a place up",
        "parameters": {"type": "object", "properties": {"echo": {"type": "string"}}, "required": ["echo"]},
    },
}

_cases: dict[str, Callable[[], dict[str, Any]]] = {}


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Mark a function as one case; it returns what it saw."""
    _cases[function.__name__] = function
    return function


def go() -> None:
    """Run every case in order and print what each saw."""
    for name, function in _cases.items():
        try:
            line: dict[str, Any] = {"case": name, "saw": function()}
        except Exception:
            line = {"case": name, "raised": traceback.format_exc()}
        print(json.dumps(line), flush=True)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def usage(of: Any) -> list[int]:
    """Tokens of prompt, completion, and both."""
    return [of.prompt_tokens, of.completion_tokens, of.total_tokens]


def refusal(function: Callable[[], Any], *errors: type[Exception]) -> dict[str, Any]:
    """The error that a call ends with (OpenAI's, or `errors`), by the class that users would catch: not by
    what a library on top has derived from that."""
    try:
        function()
    except (openai.OpenAIError, *errors) as error:
        return {
            "error": next(c.__name__ for c in type(error).__mro__ if c.__module__.startswith(CATCHABLE)),
            "status": getattr(error, "status_code", None),
            "code": getattr(error, "code", None),
            "param": getattr(error, "param", None),
        }
    return {"error": None}


@contextlib.contextmanager
def the_only_request() -> Iterator[Callable[[], None]]:
    """The limited key's one request is under way; what comes with it ends that request."""
    with openai.OpenAI(base_url=URL, api_key=PLAN["limited_key"], max_retries=MOST_RETRIES) as client:
        held = client.chat.completions.create(
            model=SLOW, messages=say("hold on"), max_tokens=1000, stream=True
        )
        next(iter(held))
        try:
            yield held.close
        finally:
            held.close()


class Tries:
    """A hook for HTTP clients: the status of each try and when it came; `refused` is called at a 429."""

    def __init__(self, refused: Callable[[], None] = lambda: None) -> None:
        self.statuses: list[int] = []
        self._times: list[float] = []
        self._refused = refused

    def __call__(self, response: Any) -> None:
        self.statuses.append(response.status_code)
        self._times.append(time.monotonic())
        if response.status_code == 429:
            self._refused()

    def saw(self) -> dict[str, Any]:
        """First and last status, and whether each try came a second (Retry-After) after the last."""
        pauses = [b - a for a, b in zip(self._times, self._times[1:], strict=False)]
        return {
            "first": self.statuses[0],
            "last": self.statuses[-1],
            "repeated": len(self.statuses) > 1,
            "waited": all(pause >= 1 for pause in pauses),
        }
