"""A stand-in for NVIDIA's library, for agents that are to have GPUs: put this folder on their PYTHONPATH.

``FAKE_NVML`` names the GPUs: ``RTX 4090:24, L40S:48`` has two, with GiB of memory each. How busy they are
wanders, each in its own way.
"""

from __future__ import annotations

import math
import os
import time
from typing import NamedTuple

GIB = 1 << 30
NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    """As the real one."""


class Memory(NamedTuple):
    total: int
    free: int
    used: int


class Rates(NamedTuple):
    gpu: int
    memory: int


def _gpus() -> list[tuple[str, int]]:
    named = [part.rpartition(":") for part in os.environ.get("FAKE_NVML", "").split(",") if part.strip()]
    return [(name.strip(), int(gib)) for name, _, gib in named]


def _busy(handle: int) -> float:
    """From 0.2 to 0.95, over a minute or so."""
    phase = handle * 1.7 + sum(os.environ.get("FAKE_NVML", "").encode()) % 7
    return 0.575 + 0.375 * math.sin(time.time() / 9 + phase)


def nvmlInit() -> None:
    if not _gpus():
        raise NVMLError("no GPU")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlSystemGetDriverVersion() -> str:
    return "570.86.15"


def nvmlDeviceGetUUID(handle: int) -> str:
    return f"GPU-{handle:08x}-0000-4000-8000-{os.getpid():012x}"


def nvmlDeviceGetName(handle: int) -> str:
    return _gpus()[handle][0]


def nvmlDeviceGetMemoryInfo(handle: int) -> Memory:
    total = _gpus()[handle][1] * GIB
    used = int(total * 0.55)
    return Memory(total, total - used, used)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[object]:
    return []


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    return 8, 9


def nvmlDeviceGetUtilizationRates(handle: int) -> Rates:
    return Rates(round(100 * _busy(handle)), 40)


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
    return round(38 + 40 * _busy(handle))


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    return round(1000 * (60 + 330 * _busy(handle)))
