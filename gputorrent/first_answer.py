"""From a started agent to a first answer: waiting for the model, asking, and judging what came back."""

from __future__ import annotations

import sys
import time
from typing import Any

import httpx

from gputorrent.children import Child
from gputorrent.demo_model import Model
from gputorrent.family import Failure, Family
from gputorrent.progress import Progress, say
from gputorrent.question import QUESTION, Answer, NoAnswer, ask
from gputorrent.stack import Stack, get

_MODEL_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
_REFUSED_SECONDS = 10.0  # web processes hear of a new key within a second, on a busy machine later


def wait_for_model(stack: Stack, family: Family, agent: Child, key: str, model: Model) -> None:
    """Until callers can use it; the agent's own words are shown meanwhile. Raises Failure."""
    progress = Progress(f"waiting for {model.name}")
    shown = listed = 0
    known_by = time.monotonic() + _REFUSED_SECONDS
    # Each web process sees a new model at a look of its own, several in a second: by the third time that one
    # of them has it, all have.
    enough = 1 if stack.place.web_processes == 1 else 3

    def ready() -> bool:
        nonlocal shown, listed
        lines = agent.output().splitlines()
        for line in lines[shown:]:
            progress.note(f"  agent: {_without_time(line)}")
        shown = len(lines)
        progress.update("starting vLLM and loading the model")
        try:
            response = get(f"{stack.place.local_url}/v1/models", key)
        except httpx.HTTPError:
            return False
        if response.status_code in {401, 403}:
            if time.monotonic() < known_by:
                return False
            raise Failure(f"the coordinator refuses its own key: HTTP {response.status_code}")
        has_it = response.status_code == 200 and model.name in {m["id"] for m in response.json()["data"]}
        listed = listed + 1 if has_it else 0
        return listed >= enough

    try:
        family.wait(ready, _MODEL_SECONDS, "loading the model", every=_LOOK_SECONDS)
    except BaseException:
        progress.failed()
        raise
    progress.done("ready")


def first_answer(stack: Stack, family: Family, key: str, model: Model) -> tuple[Answer, str]:
    """Ask, show the answer as it comes; returns it and the engine that gave it. Raises Failure."""
    say(f"\n> {QUESTION}")

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        answer = ask(stack.place.local_url, key, model.name, show)
        say("")
        engine = engine_behind(get(f"{stack.place.local_url}/workers", key).json(), model.name)
    except (NoAnswer, httpx.HTTPError, ValueError) as e:
        family.check()  # if a process is gone, that is the better reason
        raise Failure(f"no answer: {e}") from None
    return answer, engine


def engine_behind(workers: dict[str, Any], model: str) -> str:
    """What ``GET /workers`` says about the engine that serves `model`; empty if it says nothing."""
    for node in workers.get("data", []):
        for served in node.get("models", []):
            if served.get("name") == model and served.get("engine"):
                return str(served["engine"])
    return ""


def what_is_wrong(answer: Answer, engine: str, *, expect_paris: bool) -> str | None:
    """Why an answer is not the one that proves that everything works; None if it is."""
    if not engine.lower().startswith("vllm"):
        return f"the answer did not come from vLLM but from {engine or 'an unknown engine'}"
    if not answer.text.strip():
        return "the answer is empty"
    if expect_paris and "Paris" not in answer.text:
        return "the answer does not name Paris"
    return None


def _without_time(line: str) -> str:
    """An agent's log line less its timestamp and level."""
    parts = line.split(maxsplit=2)
    return parts[2] if len(parts) == 3 and parts[0].endswith("Z") else line
