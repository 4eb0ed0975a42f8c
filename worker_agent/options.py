"""How the words of the command line are read: one function for each kind, for argparse."""

from __future__ import annotations

import argparse
import ipaddress
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker_agent import memory, quiet
from worker_agent.contract import MODEL_NAME, NODE_NAME
from worker_agent.launch import ModelChoice


@dataclass(frozen=True, slots=True)
class RemoteChoice:
    """A model of a server that already runs. `served_name` is what that server calls it; empty: the same."""

    name: str
    served_name: str
    host: str
    port: int
    prefix: str = ""  # of every path, without a slash at its end
    tls: bool = False

    @property
    def where(self) -> str:
        """The server's address, for people."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}{self.prefix}"

    @property
    def is_exposed(self) -> bool:
        """Whether prompts would cross a network in the clear."""
        if self.tls or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def coordinator(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL like http://host:8000")
    if parts.username is not None:
        raise argparse.ArgumentTypeError("no credentials in the URL: the token goes to --token")
    return text.rstrip("/")


def model(text: str) -> ModelChoice:
    name, equals, source = text.partition("=")
    if not equals:
        source = name
    if source.startswith(("~", ".", "/")):
        source = str(Path(source).expanduser().resolve())
        name = name if equals else Path(source).name
    if not MODEL_NAME.fullmatch(name) or not source:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME, or NAME=PATH_OR_HUGGING_FACE_ID")
    return ModelChoice(name, source)


def engine_url(text: str) -> RemoteChoice:
    models, _, url = text.rpartition("@")
    name, _, served = models.partition("=")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    good = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
    if not good or port == -1 or parts.username is not None or not MODEL_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME@URL or NAME=ITS_NAME_THERE@URL")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return RemoteChoice(name, served, parts.hostname or "", port or (443 if tls else 80), prefix, tls)


def need(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SIZE, such as llama=18GiB")
    try:
        return name, memory.parse_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def reserve(text: str) -> memory.Reserve:
    try:
        return memory.parse_reserve(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def quiet_hours(text: str) -> tuple[quiet.Span, ...]:
    try:
        return quiet.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def name(text: str) -> str:
    if not NODE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, dot, dash and underscore, at most 63")
    return text


def label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key) or len(key) > 200 or len(value) > 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 100_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
