"""What the agent was told: one frozen value, built once from the command line and the environment."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from worker_agent import __version__
from worker_agent.contract import MODEL_NAME, NODE_NAME
from worker_agent.launch import ModelChoice

PREFIX = "GPUTORRENT_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are in seconds."""

    coordinator: str
    models: tuple[ModelChoice, ...]
    token: str = ""
    name: str = ""
    engine_python: str = sys.executable
    engine_args: tuple[str, ...] = ()
    slots: int = 64
    max_model_len: int | None = None
    state_dir: Path = Path()
    labels: tuple[tuple[str, str], ...] = ()
    grace_seconds: float = 30.0
    load_seconds: float = 900.0
    connect_seconds: float = 30.0
    redis_ca: str | None = None
    log_json: bool = False

    def __repr__(self) -> str:
        return f"Settings(coordinator={self.coordinator!r}, models={self.models!r}, ...)"  # never the token


def _coordinator(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL like http://host:8000")
    if parts.username is not None:
        raise argparse.ArgumentTypeError("no credentials in the URL: the token goes to --token")
    return text.rstrip("/")


def _model(text: str) -> ModelChoice:
    name, equals, source = text.partition("=")
    if not equals:
        source = name
    if source.startswith(("~", ".", "/")):
        source = str(Path(source).expanduser().resolve())
        name = name if equals else Path(source).name
    if not MODEL_NAME.fullmatch(name) or not source:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME, or NAME=PATH_OR_HUGGING_FACE_ID")
    return ModelChoice(name, source)


def _name(text: str) -> str:
    if not NODE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, dot, dash and underscore, at most 63")
    return text


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key) or len(key) > 200 or len(value) > 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 100_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


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
        "line wins.",
        allow_abbrev=False,
    )
    add = own.add_argument
    add(
        "--coordinator",
        type=_coordinator,
        metavar="URL",
        help="where the coordinator is, e.g. http://host:8000",
    )
    add(
        "--token",
        help="enrolment token from the coordinator's admin; needed the first time only "
        "(better in GPUTORRENT_TOKEN, where other users cannot see it)",
    )
    add(
        *("--model", "-m"),
        dest="model",
        type=_model,
        action="append",
        metavar="NAME[=SOURCE]",
        help="a model to serve: the name callers use, and the local folder or Hugging Face id to load "
        "(default: the name itself); again for each model",
    )
    add("--name", type=_name, help="what this node is called (default: the host's name)")
    add(
        "--label",
        type=_label,
        action="append",
        metavar="KEY=VALUE",
        help="a label for routing; again for more",
    )
    engine = own.add_argument_group("engine")
    add = engine.add_argument
    add("--engine-python", metavar="PATH", help="the Python that has vLLM (default: the one running this)")
    add("--engine-args", type=_words, metavar="ARGS", help="more arguments for vLLM, quoted as one")
    add("--slots", type=_positive, metavar="N", help="requests at once for each model (default: 64)")
    add("--max-model-len", type=_positive, metavar="N", help="tokens of context (default: the model's)")
    add("--load-seconds", type=_seconds, metavar="S", help="longest time a model may load (default: 900)")
    running = own.add_argument_group("running")
    add = running.add_argument
    add(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="credentials and engine logs (default: XDG state folder)",
    )
    add(
        *("--grace-seconds",),
        type=_seconds,
        metavar="S",
        help="on SIGTERM or Ctrl-C, time for running requests to end (default: 30); a second signal ends it",
    )
    add(
        *("--connect-seconds",),
        type=_seconds,
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
    return own


def _from_environment(own: argparse.ArgumentParser, environment: Mapping[str, str]) -> dict[str, object]:
    """Values of the options that are set in the environment, parsed as on the command line."""
    found: dict[str, object] = {}
    for action in own._actions:
        text = environment.get(PREFIX + action.dest.upper(), "")
        if not text or action.dest in {"help", "version"}:
            continue
        parse = action.type if callable(action.type) else str
        try:
            if action.dest == "log_json":
                found[action.dest] = text.lower() in {"1", "true", "yes", "on"}
            elif action.dest in {"model", "label"}:
                found[action.dest] = [parse(part.strip()) for part in text.split(",") if part.strip()]
            else:
                found[action.dest] = parse(text)
        except argparse.ArgumentTypeError as error:
            own.error(f"environment variable {PREFIX}{action.dest.upper()}: {error}")
    return found


def read(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Build the settings. Ends the program with exit code 2 and one clear line if they are wrong."""
    own = parser()
    given = {key: value for key, value in vars(own.parse_args(argv)).items() if value is not None}
    told = {**_from_environment(own, environment), **given}
    models = told.pop("model", [])
    if not told.get("coordinator"):
        own.error("--coordinator (or GPUTORRENT_COORDINATOR) is missing: the coordinator's URL")
    if not isinstance(models, list) or not models:
        own.error("--model (or GPUTORRENT_MODEL) is missing: name at least one model to serve")
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        own.error("the same model name is given twice")
    labels = told.pop("label", [])
    assert isinstance(labels, list)
    state_dir = told.pop("state_dir", None) or _state_dir(environment)
    assert isinstance(state_dir, Path)
    settings = Settings(
        models=tuple(models),
        labels=tuple(labels),
        state_dir=state_dir.expanduser().absolute(),
        **told,
    )
    return _checked(own, settings)


def _checked(own: argparse.ArgumentParser, settings: Settings) -> Settings:
    if settings.redis_ca is not None and not os.path.isfile(settings.redis_ca):
        own.error(f"--redis-ca: there is no file {settings.redis_ca}")
    return settings
