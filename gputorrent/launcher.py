"""``python -m gputorrent demo | smoke | up | engine``: one process starts, watches and stops the others.

Only the launcher talks to the person. Its children are in process groups of their own, so Ctrl-C reaches it
alone; it stops them in order, and should it be killed the kernel tells them (see `tied`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gputorrent import demo_model, engine_environment, ports
from gputorrent.environments import ROOT, EnvironmentFailure
from gputorrent.family import Failure, Family, Interrupted, Interrupts
from gputorrent.first_answer import first_answer, wait_for_model, what_is_wrong
from gputorrent.guidance import how_to_administer, how_to_go_on
from gputorrent.progress import Progress, say
from gputorrent.question import Answer
from gputorrent.stack import Place, Stack

DEFAULT_PORT = 8000
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `port` None: choose one. `host` empty: what fits the mode."""

    command: str
    host: str = ""
    port: int | None = None
    web_processes: int = 1
    model: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What `smoke` says in its last line."""

    ok: bool
    model: str
    answer: str
    ttft_ms: float | None
    tokens_per_s: float | None
    seconds_total: float
    reason: str | None = None

    def line(self) -> str:
        """One JSON object; `reason` only where there is one."""
        fields = dataclasses.asdict(self)
        if self.reason is None:
            del fields["reason"]
        return json.dumps(fields, ensure_ascii=False)


def run(options: Options, environment: Mapping[str, str]) -> int:
    """Do what was asked. Returns the exit status."""
    interrupts = Interrupts()
    interrupts.install()
    try:
        return _run(options, environment, interrupts)
    except BrokenPipeError:  # nobody reads what we say any more (`make smoke | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _run(options: Options, environment: Mapping[str, str], interrupts: Interrupts) -> int:
    if options.command == "smoke":
        return _smoke(options, environment, interrupts)
    try:
        match options.command:
            case "demo":
                _demo(options, environment, interrupts)
            case "up":
                _up(options, environment, interrupts)
            case "engine":
                _engine_and_model(options, environment)
    except (Failure, EnvironmentFailure, ValueError) as e:
        _complain(e)
        return 1
    except Interrupted:
        say("stopped")
        # Ending a demo or a server is not a failure; an installation that was cut short is one.
        return 130 if options.command == "engine" else 0
    return 0


# -- commands ------------------------------------------------------------------------------------------
def _demo(options: Options, environment: Mapping[str, str], interrupts: Interrupts) -> None:
    data = Path(environment.get("GPUTORRENT_DATA_DIR") or ROOT / ".data").absolute()
    with _serving(options, environment, interrupts, data) as (stack, family, made, model):
        answer, _ = first_answer(stack, family, made["api_key"], model)
        say(f"\nfirst token after {answer.ttft_ms:.0f} ms, then {answer.tokens_per_s:.1f} tokens/s\n")
        say(how_to_go_on(stack.place.local_url, made, model.name))
        _stay(family)


def _smoke(options: Options, environment: Mapping[str, str], interrupts: Interrupts) -> int:
    started = time.monotonic()
    data = Path(tempfile.mkdtemp(prefix="gputorrent-smoke-"))
    model_name = options.model or demo_model.DEFAULT_NAME
    answer: Answer | None = None
    reason: str | None = None
    status = 0
    try:
        with _serving(options, environment, interrupts, data) as (stack, family, made, model):
            model_name = model.name
            answer, engine = first_answer(stack, family, made["api_key"], model)
            say("")
            reason = what_is_wrong(answer, engine, expect_paris=model.default)
    except (Failure, EnvironmentFailure, ValueError) as e:
        _complain(e)
        reason = str(e)
    except Interrupted:
        reason, status = "interrupted", 130
    finally:
        shutil.rmtree(data, ignore_errors=True)
    result = Result(
        ok=reason is None,
        model=model_name,
        answer=answer.text if answer else "",
        ttft_ms=round(answer.ttft_ms, 1) if answer else None,
        tokens_per_s=round(answer.tokens_per_s, 1) if answer else None,
        seconds_total=round(time.monotonic() - started, 1),
        reason=reason,
    )
    say(result.line())
    return status or (0 if result.ok else 1)


def _up(options: Options, environment: Mapping[str, str], interrupts: Interrupts) -> None:
    settings = dict(environment)
    mode = settings.setdefault("GPUTORRENT_MODE", "production")
    data = Path(environment.get("GPUTORRENT_DATA_DIR") or ROOT / ".data").absolute()
    host = options.host or ("0.0.0.0" if mode == "production" else "127.0.0.1")  # noqa: S104 - a server's job
    place = Place(data, host, _port(options, host), options.web_processes)
    family = Family(interrupts)
    stack = Stack(place, family, settings, own_logs=False)
    try:
        stack.check_settings()
        stack.claim_data()
        _start_coordinator(stack)
        stack.start_jobworker()
        say(how_to_administer(place, mode, embedded_redis=not environment.get("REDIS_URL")))
        _stay(family)
    finally:
        family.stop()


def _engine_and_model(options: Options, environment: Mapping[str, str]) -> tuple[Path, demo_model.Model]:
    model = demo_model.choose(options.model)
    python = engine_environment.ensure(environment)
    if model.default:
        demo_model.ensure_default(python)
    return python, model


# -- their parts ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def _serving(
    options: Options, environment: Mapping[str, str], interrupts: Interrupts, data: Path
) -> Iterator[tuple[Stack, Family, dict[str, Any], demo_model.Model]]:
    """A coordinator and an agent with its model ready, for as long as the block lasts."""
    family = Family(interrupts)
    host = options.host or "127.0.0.1"
    # The cheap refusals come before minutes of installing.
    demo_model.choose(options.model)
    place = Place(data, host, _port(options, host), options.web_processes)
    stack = Stack(place, family, environment)
    try:
        stack.check_settings()
        stack.claim_data()
        python, model = _engine_and_model(options, environment)
        _start_coordinator(stack)
        made = stack.bootstrap()
        stack.start_jobworker()
        say(f"coordinator ready at {place.local_url}")
        agent = stack.start_agent(
            model, python, made["enrolment_token"], *_engine_options(model, environment)
        )
        wait_for_model(stack, family, agent, made["api_key"], model)
        yield stack, family, made, model
    finally:
        family.stop()


def _start_coordinator(stack: Stack) -> None:
    stack.start_redis()
    progress = Progress("preparing the database")
    stack.manage("migrate", "--noinput", "--verbosity", "0")
    progress.done()
    stack.start_web()


def _stay(family: Family) -> None:
    while True:
        family.check()
        time.sleep(_LOOK_SECONDS)


def _port(options: Options, host: str) -> int:
    try:
        ports.span()
    except ValueError as e:
        raise Failure(str(e)) from None
    if options.port is not None:
        if not ports.is_free(options.port, host):
            raise Failure(
                f"port {options.port} on {host} is in use or not allowed: choose another with PORT="
            )
        return options.port
    if options.command == "smoke":
        return ports.any_free(host)
    if options.command == "up":  # a server's clients know its port: no silent change
        return _port(dataclasses.replace(options, port=DEFAULT_PORT), host)
    port = ports.next_free(DEFAULT_PORT, host)
    if port != DEFAULT_PORT:
        say(f"port {DEFAULT_PORT} is in use, taking {port}")
    return port


def _engine_options(model: demo_model.Model, environment: Mapping[str, str]) -> list[str]:
    """What the demo adds to the agent's command line. Without a GPU a small context and no compiling."""
    options = []
    length = environment.get("MAX_MODEL_LEN", "")
    engine_arguments = environment.get("ENGINE_ARGS", "")
    if not engine_environment.has_gpu():
        length = length or str(demo_model.context_without_gpu(model))
        engine_arguments = f"--enforce-eager {engine_arguments}".strip()
    if length:
        options += ["--max-model-len", length]
    if engine_arguments:
        options += [f"--engine-args={engine_arguments}"]
    return options


def _complain(error: Exception) -> None:
    details = getattr(error, "details", "") or getattr(error, "output", "")
    if details:
        sys.stderr.write(f"\n{details.rstrip()}\n\n")
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
