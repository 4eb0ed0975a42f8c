"""How an engine is started: its command line, its environment, its port."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


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
    single_precision: bool = False,
    gpu_share: float | None = None,
    sleep_mode: bool = False,
) -> list[str]:
    """The command that serves `model` on loopback. `extra` comes last, so that it wins.

    `single_precision` is for a CPU whose half precision is slow, `gpu_share` the part of each GPU's memory
    that this engine may take.
    """
    # Not the `vllm` console script: it fails with the CPU package, the module works with both.
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model.source, "--served-model-name", model.name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", str(slots)]
    command += ["--disable-uvicorn-access-log"]  # a line for each request and scrape would bury the rest
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    if single_precision:
        command += ["--dtype", "float32"]
    if gpu_share is not None:
        command += ["--gpu-memory-utilization", f"{gpu_share:.3f}"]
    if sleep_mode:
        command += ["--enable-sleep-mode"]
    return [*command, *extra]


def gpus_used(extra: Sequence[str]) -> int:
    """How many GPUs an engine with these arguments uses."""
    count, words = 1, [part for word in extra for part in word.split("=", 1)]
    for option, value in pairwise(words):
        if option in _PARALLEL and value.isdigit():
            count *= max(1, int(value))
    return count


_PARALLEL = {
    *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"),
}


def without_secrets(base: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs that have no business with the agent's own settings and token."""
    return {name: value for name, value in base.items() if not name.startswith("GPUTORRENT_")}


def kv_cache_gib(environment: Mapping[str, str]) -> float:
    """GiB of KV cache that a CPU engine makes in this environment."""
    try:
        return float(environment.get("VLLM_CPU_KVCACHE_SPACE") or 1)
    except ValueError:
        return 1.0


def engine_environment(
    base: Mapping[str, str], model: ModelChoice, *, has_gpu: bool, sleep_mode: bool = False
) -> dict[str, str]:
    """The agent's own environment without its secrets, with what vLLM needs here."""
    environment = without_secrets(base)
    environment["VLLM_NO_USAGE_STATS"] = "1"
    environment["DO_NOT_TRACK"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"  # progress must reach the log while it is news
    if model.is_local:
        environment.setdefault("HF_HUB_OFFLINE", "1")
    if sleep_mode:
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # /sleep and /wake_up exist only then; on loopback
    if not has_gpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    return environment


def free_port() -> int:
    """A port below the range that outgoing connections take theirs from, free at this moment.

    Raises `OSError` if there is none.
    """
    for _ in range(200):
        port = random.randint(18_000, 30_000)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 18000 and 30000")
