"""What the agent was told: one frozen value, built once from the command line and the environment."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from worker_agent import __version__, options
from worker_agent.launch import ModelChoice
from worker_agent.memory import Reserve
from worker_agent.options import RemoteChoice
from worker_agent.quiet import Span

PREFIX = "GPUTORRENT_"
_LISTS = {"model", "offer", "engine_url", "label", "need"}
"""Given again for more; in the environment separated by commas."""
_SWITCHES = {"log_json", "no_sleep_mode"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are in seconds, sizes in bytes."""

    coordinator: str
    models: tuple[ModelChoice, ...] = ()  # loaded at the start
    offers: tuple[ModelChoice, ...] = ()  # loaded when asked for
    remotes: tuple[RemoteChoice, ...] = ()  # served by engines that already run
    token: str = ""
    name: str = ""
    engine_python: str = sys.executable
    engine_args: tuple[str, ...] = ()
    slots: int = 64
    max_model_len: int | None = None
    vram_reserve: Reserve | None = None
    needs: tuple[tuple[str, int], ...] = ()
    min_residence_seconds: float = 60.0
    sleep_mode: bool = True
    canary_seconds: float = 30.0
    abort_seconds: float = 10.0
    quiet_hours: tuple[Span, ...] = ()
    state_dir: Path = Path()
    labels: tuple[tuple[str, str], ...] = ()
    grace_seconds: float = 30.0
    load_seconds: float = 900.0
    connect_seconds: float = 30.0
    redis_ca: str | None = None
    log_json: bool = False

    def __repr__(self) -> str:
        return f"Settings(coordinator={self.coordinator!r}, models={self.models!r}, ...)"  # never the token


def _state_dir(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "gputorrent-agent"


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, without the usage of everything."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"worker_agent: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    own = _Parser(
        prog="python -m worker_agent",
        description="Join this machine's GPUs to a GPU Torrent coordinator: load the models with vLLM, take "
        "requests, stream the answers back.",
        epilog="Every option can also be given as an environment variable, GPUTORRENT_ and its name in "
        "capitals (GPUTORRENT_TOKEN, GPUTORRENT_MODEL, ...; several models separated by commas). The command "
        "line wins. Sizes: 4GiB, 512MiB (powers of 1024).",
        allow_abbrev=False,
    )
    add = own.add_argument
    add(
        "--coordinator",
        type=options.coordinator,
        metavar="URL",
        help="where the coordinator is, e.g. http://host:8000",
    )
    add(
        "--token",
        help="enrolment token from the coordinator's admin; needed the first time only "
        "(better in GPUTORRENT_TOKEN, where other users cannot see it)",
    )
    add("--name", type=options.name, help="what this node is called (default: the host's name)")
    add(
        "--label",
        type=options.label,
        action="append",
        metavar="KEY=VALUE",
        help="a label for routing; again for more",
    )
    _add_models(own.add_argument_group("models (at least one)").add_argument)
    _add_engine(own.add_argument_group("engine").add_argument)
    _add_running(own.add_argument_group("running").add_argument)
    return own


def _add_models(add: Any) -> None:
    add(
        "--model",
        "-m",
        type=options.model,
        action="append",
        metavar="NAME[=SOURCE]",
        help="a model to load at the start: the name callers use, and the local folder or Hugging Face id to "
        "load it from (default: the name itself); again for each model, in order of preference: what does "
        "not fit beside the others is loaded when asked for",
    )
    add(
        "--offer",
        type=options.model,
        action="append",
        metavar="NAME[=SOURCE]",
        help="a model to load when the first request for it comes, unloading the one that was idle longest "
        "if there is no room; again for each model",
    )
    add(
        "--engine-url",
        type=options.engine_url,
        action="append",
        metavar="NAME[=ITS_NAME]@URL",
        help="a model of an OpenAI-compatible server that already runs (vLLM, SGLang, llama.cpp, Ollama), "
        "e.g. llama=llama3:8b@http://127.0.0.1:11434; watched, never started or stopped; again for more",
    )
    add(
        "--vram-reserve",
        type=options.reserve,
        metavar="SHARE|SIZE",
        help="memory kept free for this machine's owner: a share (0.1, 10%%) or a size (4GiB); default 10%% "
        "of the GPUs' memory, on a host without a GPU 25%% of its RAM",
    )
    add(
        "--need",
        type=options.need,
        action="append",
        metavar="NAME=SIZE",
        help="memory that a model takes when loaded, KV cache included (default: estimated before its first "
        "load, measured then); again for more",
    )
    add(
        "--min-residence-seconds",
        type=options.seconds,
        metavar="S",
        help="how long a model stays loaded before it may make room for another (default: 60)",
    )


def _add_engine(add: Any) -> None:
    add("--engine-python", metavar="PATH", help="the Python that has vLLM (default: the one running this)")
    add("--engine-args", type=options.words, metavar="ARGS", help="more arguments for vLLM, quoted as one")
    add("--slots", type=options.positive, metavar="N", help="requests at once for each model (default: 64)")
    add(
        "--max-model-len",
        type=options.positive,
        metavar="N",
        help="tokens of context (default: the model's)",
    )
    add(
        "--load-seconds",
        type=options.seconds,
        metavar="S",
        help="longest time a model may load (default: 900)",
    )
    add(
        "--canary-seconds",
        type=options.seconds,
        metavar="S",
        help="an engine with work that gives no sign of life for so long is asked for one token, and has as "
        "long again to make it before it is killed and started anew (default: 30)",
    )
    add(
        "--abort-seconds",
        type=options.seconds,
        metavar="S",
        help="how long an engine may go on with cancelled requests before it is started anew (default: 10)",
    )
    add(
        "--no-sleep-mode",
        action="store_true",
        default=None,
        help="unload models by stopping their engine, even where vLLM's sleep mode is quicker (GPUs only)",
    )


def _add_running(add: Any) -> None:
    add(
        "--quiet-hours",
        type=options.quiet_hours,
        action="append",
        metavar="TIMES",
        help='when the owner keeps the machine, in its local time: "Mon-Fri 09:00-18:00", "22:00-06:00"; '
        "running work ends, then all models are unloaded until it is over; again, or with commas, for more",
    )
    add(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="credentials, engine logs, measured needs (default: XDG state folder)",
    )
    add(
        "--grace-seconds",
        type=options.seconds,
        metavar="S",
        help="on SIGTERM or Ctrl-C, time for running requests to end (default: 30); a second signal ends it",
    )
    add(
        "--connect-seconds",
        type=options.seconds,
        metavar="S",
        help="how long to try to reach the coordinator at the start (default: 30)",
    )
    add(
        "--redis-ca",
        metavar="FILE",
        help="certificate authority of a rediss:// broker (default: the system's)",
    )
    add("--log-json", action="store_true", default=None, help="log JSON objects, one a line")
    add("--version", action="version", version=f"gputorrent worker_agent {__version__}")


def _from_environment(own: argparse.ArgumentParser, environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of the options that are set in the environment, parsed as on the command line."""
    found: dict[str, Any] = {}
    for action in own._actions:
        text = environment.get(PREFIX + action.dest.upper(), "")
        if not text or action.dest in {"help", "version"}:
            continue
        parse = action.type if callable(action.type) else str
        try:
            if action.dest in _SWITCHES:
                found[action.dest] = text.lower() in {"1", "true", "yes", "on"}
            elif action.dest in _LISTS:
                found[action.dest] = [parse(part.strip()) for part in text.split(",") if part.strip()]
            elif action.dest == "quiet_hours":
                found[action.dest] = [parse(text)]
            else:
                found[action.dest] = parse(text)
        except argparse.ArgumentTypeError as error:
            own.error(f"environment variable {PREFIX}{action.dest.upper()}: {error}")
    return found


def read(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Build the settings. Ends the program with exit code 2 and one clear line if they are wrong."""
    own = parser()
    given = {key: value for key, value in vars(own.parse_args(argv)).items() if value is not None}
    told: dict[str, Any] = {**_from_environment(own, environment), **given}
    if not told.get("coordinator"):
        own.error("--coordinator (or GPUTORRENT_COORDINATOR) is missing: the coordinator's URL")
    state_dir: Path = told.pop("state_dir", None) or _state_dir(environment)
    settings = Settings(
        models=tuple(told.pop("model", [])),
        offers=tuple(told.pop("offer", [])),
        remotes=tuple(told.pop("engine_url", [])),
        labels=tuple(told.pop("label", [])),
        needs=tuple(told.pop("need", [])),
        quiet_hours=tuple(span for spans in told.pop("quiet_hours", []) for span in spans),
        sleep_mode=not told.pop("no_sleep_mode", False),
        state_dir=state_dir.expanduser().absolute(),
        **told,
    )
    return _checked(own, settings)


def _checked(own: argparse.ArgumentParser, settings: Settings) -> Settings:
    own_names = [it.name for it in (*settings.models, *settings.offers)]
    names = [*own_names, *(it.name for it in settings.remotes)]
    if not names:
        own.error(
            "--model (or GPUTORRENT_MODEL), --offer or --engine-url is missing: name at least one model"
        )
    if len(set(names)) != len(names):
        own.error("the same model name is given twice")
    for name, _size in settings.needs:
        if name not in own_names:
            own.error(f"--need: {name} is neither a --model nor an --offer")
    if settings.redis_ca is not None and not os.path.isfile(settings.redis_ca):
        own.error(f"--redis-ca: there is no file {settings.redis_ca}")
    return settings
