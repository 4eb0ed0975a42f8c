"""What this machine is and how it does: GPUs through NVML, field by field; the host through psutil.

A driver that cannot tell one figure still tells the others; a host without NVML is a CPU node and says so by
an empty list of GPUs.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pynvml

from worker_agent.contract import Gpu, GpuLoad, Host

_T = TypeVar("_T")


def _field(read: Callable[[], _T], otherwise: _T) -> _T:
    """One figure, or `otherwise` where the driver does not tell it."""
    try:
        return read()
    except (pynvml.NVMLError, UnicodeDecodeError, ValueError):
        return otherwise


def _text(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))[:200]


class Gpus:
    """The NVIDIA GPUs that this agent may use (all, or those of ``CUDA_VISIBLE_DEVICES``)."""

    def __init__(self, visible: str | None = None) -> None:
        self._handles: dict[int, Any] = {}
        self._opened = False
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError):
            return
        self._opened = True
        for index in range(_field(pynvml.nvmlDeviceGetCount, 0)):
            handle = _field(lambda index=index: pynvml.nvmlDeviceGetHandleByIndex(index), None)  # type: ignore[misc]
            if handle is not None and self._is_visible(index, handle, visible):
                self._handles[index] = handle

    def __len__(self) -> int:
        return len(self._handles)

    @staticmethod
    def _is_visible(index: int, handle: Any, visible: str | None) -> bool:
        if visible is None:
            return True
        names = [name.strip() for name in visible.split(",")]
        uuid_of = _field(lambda: _text(pynvml.nvmlDeviceGetUUID(handle)), "?")
        return str(index) in names or any(name and uuid_of.startswith(name) for name in names)

    def describe(self) -> list[Gpu]:
        """What each GPU is. Sizes in bytes."""
        driver = _field(lambda: _text(pynvml.nvmlSystemGetDriverVersion()), "") if self._opened else ""
        return [self._describe(index, handle, driver) for index, handle in self._handles.items()]

    def load(self) -> list[GpuLoad]:
        """How each GPU does now."""
        return [self._load(index, handle) for index, handle in self._handles.items()]

    def vram(self, count: int) -> int:
        """Memory of the first `count` GPUs, in bytes."""
        return sum(self._memory(handle)[0] for handle in list(self._handles.values())[:count])

    def used_by(self, pids: set[int]) -> int:
        """GPU memory that these processes take, in bytes; 0 where the driver does not tell (as in most
        containers, whose pids are not the driver's)."""
        total = 0
        for handle in self._handles.values():
            read = functools.partial(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
            processes: list[Any] = _field(read, [])
            total += sum(int(it.usedGpuMemory or 0) for it in processes if it.pid in pids)
        return total

    def close(self) -> None:
        """Let go of the driver."""
        if self._opened:
            _field(pynvml.nvmlShutdown, None)
            self._opened = False

    @staticmethod
    def _memory(handle: Any) -> tuple[int, int]:
        """Total and free bytes."""
        memory = _field(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle), None)
        if memory is None:  # unified memory: the host's is the GPU's
            host = psutil.virtual_memory()
            return host.total, host.available
        return int(memory.total), int(memory.free)

    def _describe(self, index: int, handle: Any, driver: str) -> Gpu:
        total, free = self._memory(handle)
        major, minor = _field(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle), (0, 0))
        return Gpu(
            index=index,
            uuid=_field(lambda: _text(pynvml.nvmlDeviceGetUUID(handle)), f"gpu-{index}"),
            name=_field(lambda: _text(pynvml.nvmlDeviceGetName(handle)), "NVIDIA GPU"),
            vram_total=total,
            vram_free=free,
            driver=driver,
            compute_capability=f"{major}.{minor}" if major else "",
        )

    def _load(self, index: int, handle: Any) -> GpuLoad:
        _, free = self._memory(handle)
        busy = _field(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu, None)
        heat = _field(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), None)
        power = _field(lambda: pynvml.nvmlDeviceGetPowerUsage(handle), None)  # milliwatts
        return GpuLoad(
            index=index,
            vram_free=free,
            utilisation=None if busy is None else min(1.0, busy / 100),
            temperature_c=None if heat is None else float(heat),
            power_w=None if power is None else power / 1000,
        )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()[:200]
    except OSError:
        pass
    return (platform.processor() or platform.machine())[:200]


def half_precision_is_slow() -> bool:
    """Whether this CPU has no instructions for 16-bit floats: an x86 without AVX-512.

    An engine then emulates them and generates at about a quarter of the speed of 32-bit ones.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        return " avx512f" not in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def host(state_dir: Path) -> Host:
    """The machine under the agent; `disk_free` is where models are likely to be kept. Sizes in bytes."""
    memory = psutil.virtual_memory()
    return Host(
        hostname=socket.gethostname()[:200],
        os=platform.platform()[:200],
        arch=platform.machine(),
        cpu=_cpu_name(),
        cpu_count=os.cpu_count() or 1,
        ram_total=memory.total,
        ram_free=memory.available,
        disk_free=disk_free(state_dir),
    )


def ram_free() -> int:
    """Bytes that could be used without swapping."""
    return int(psutil.virtual_memory().available)


def disk_free(path: Path) -> int:
    """Free bytes where `path` is."""
    try:
        return int(psutil.disk_usage(str(path)).free)
    except OSError:
        return 0


def cpu_usage() -> float:
    """Share of all cores in use since the last call, 0 to 1."""
    return min(1.0, max(0.0, psutil.cpu_percent(interval=None) / 100))


def fingerprint(identity: Path) -> str:
    """The same for every start on this machine from the folder `identity`, another elsewhere.

    The path is part of it so that a copy of the folder on the same machine is told from a restart: what
    keeps two agents off one identity is a lock in that folder, and a copy has a lock of its own.
    """
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    told = f"{machine or uuid.getnode()}/{socket.gethostname()}/{identity.resolve()}"
    return hashlib.sha256(b"gputorrent-machine:" + told.encode()).hexdigest()[:32]
