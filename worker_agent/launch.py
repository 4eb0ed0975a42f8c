"""How an engine is started: its command line and its environment. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to serve: the name callers use, and a local folder or Hugging Face id to load it from."""

    name: str
    source: str

    @property
    def is_local(self) -> bool:
        """Whether `source` means a folder on this host rather than an id on the hub."""
        return self.source.startswith((os.sep, "./", "../"))


def engine_command(
    python: str,
    model: ModelChoice,
    *,
    port: int,
    slots: int,
    max_model_len: int | None,
    extra: Sequence[str],
) -> list[str]:
    """The command that serves `model` on loopback. `extra` comes last, so that it wins."""
    # Not the `vllm` console script: it fails with the CPU package, the module works with both.
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model.source, "--served-model-name", model.name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", str(slots)]
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    return [*command, *extra]


def without_secrets(base: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs that have no business with the agent's own settings and token."""
    return {name: value for name, value in base.items() if not name.startswith("GPUTORRENT_")}


def engine_environment(base: Mapping[str, str], model: ModelChoice, *, has_gpu: bool) -> dict[str, str]:
    """The agent's own environment without its secrets, with what vLLM needs here."""
    environment = without_secrets(base)
    environment["VLLM_NO_USAGE_STATS"] = "1"
    environment["DO_NOT_TRACK"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"  # progress must reach the log while it is news
    if model.is_local:
        environment.setdefault("HF_HUB_OFFLINE", "1")
    if not has_gpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    return environment
