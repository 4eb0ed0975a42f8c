"""The one command that joins a host, from what the page was told. Pure.

It runs as the user who pastes it, installs into a folder of its own, and fetches the agent from the
coordinator under a hash that pip checks. No script is piped into a shell: what it does can be read.
"""

from __future__ import annotations

import shlex
from typing import Final, Literal
from urllib.parse import quote

from msgspec import Struct

from nodes.agent_files import JOIN
from nodes.agent_wheel import Wheel

PACKAGE: Final = "gputorrent-agent"
FOLDER: Final = "~/gputorrent-agent"
IMAGE: Final = "vllm/vllm-openai"
"""Runs as root; its python3 has vLLM and pip (docker/Dockerfile of vllm-project/vllm)."""
CONTAINER: Final = "gputorrent-agent"
_STOP_SECONDS: Final = 60  # Docker's 10 would cut off what the agent lets finish
_NEXT: Final = " \\\n    "
Engine = Literal["install", "python", "server", "container"]


class Wanted(Struct, frozen=True):
    """`loaded` and `offered` are NAME or NAME=SOURCE as the agent's options take them."""

    address: str  # of the coordinator, as the host reaches it, without a slash at its end
    engine: Engine = "install"
    loaded: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    python: str = ""  # of an installed vLLM
    server: str = ""  # of an engine that already runs: its URL
    name: str = ""  # of the node; empty: the host's


def wheel_url(address: str, wheel: Wheel, token: int) -> str:
    """Where pip gets the agent; the fragment is the hash that it must have."""
    return f"{address}/agent/{quote(wheel.filename)}?{JOIN}={token}#sha256={wheel.sha256}"


def command(wanted: Wanted, wheel: Wheel, token: int, secret: str, image_tag: str) -> str:
    """What to paste into a POSIX shell on the host."""
    url = wheel_url(wanted.address, wheel, token)
    if wanted.engine == "container":
        return _in_container(wanted, url, secret, image_tag)
    package = f"{PACKAGE}{'[engine]' if wanted.engine == 'install' else ''} @ {url}"
    return " && \\\n".join(
        [
            f"python3 -m venv {FOLDER}",
            f"{FOLDER}/bin/pip install --upgrade {shlex.quote(package)}",
            f"GPUTORRENT_TOKEN={shlex.quote(secret)} {start(wanted)}",
        ]
    )


def start(wanted: Wanted) -> str:
    """How the agent is started once it is installed; it has its identity from the first time."""
    if wanted.engine == "container":
        return f"docker start -ai {CONTAINER}"
    return f"{FOLDER}/bin/python -m worker_agent{_NEXT}" + _options(wanted)


def _options(wanted: Wanted) -> str:
    words = [f"--coordinator {shlex.quote(wanted.address)}"]
    if wanted.engine == "server":
        words += [f"--engine-url {shlex.quote(f'{m}@{wanted.server}')}" for m in wanted.loaded]
    else:
        words += [f"--model {shlex.quote(m)}" for m in wanted.loaded]
        words += [f"--offer {shlex.quote(m)}" for m in wanted.offered]
    if wanted.engine == "python":
        words.append(f"--engine-python {_path(wanted.python)}")
    if wanted.name:
        words.append(f"--name {shlex.quote(wanted.name)}")
    return _NEXT.join(words)


def _path(text: str) -> str:
    """A path, quoted but for a home folder at its beginning."""
    return f"~/{shlex.quote(text[2:])}" if text.startswith("~/") else shlex.quote(text)


def _in_container(wanted: Wanted, url: str, secret: str, image_tag: str) -> str:
    """A container that stays: started again it has its agent, whichever the coordinator has by then."""
    pip, options = "python3 -m pip", _options(wanted).replace(_NEXT, " ")
    install = f"{{ {pip} show -qq {PACKAGE} || {pip} install {shlex.quote(url)}; }}"
    inner = f"{install} && exec python3 -m worker_agent {options}"
    words = [
        f"docker run -it --init --name {CONTAINER} --stop-timeout {_STOP_SECONDS}",
        "--gpus all --ipc=host --network=host",
        f"-e GPUTORRENT_TOKEN={shlex.quote(secret)}",
        "-v gputorrent-agent:/root/.local/state/gputorrent-agent",
        "-v gputorrent-models:/root/.cache/huggingface",
        *(f"--mount {shlex.quote(_mount(folder))}" for folder in _folders(wanted)),
        f"--entrypoint sh {IMAGE}:{image_tag} -c {shlex.quote(inner)}",
    ]
    return _NEXT.join(words)


def _folders(wanted: Wanted) -> list[str]:
    """Models that lie on the host; there they are at the same place in the container."""
    sources = (model.partition("=")[2] for model in (*wanted.loaded, *wanted.offered))
    return list(dict.fromkeys(source for source in sources if source.startswith("/")))


def _mount(folder: str) -> str:
    """Unlike `-v` this fails where there is no such folder, instead of making an empty one."""
    return f"type=bind,source={folder},target={folder},readonly"
