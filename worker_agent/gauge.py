"""How much memory this node has for engines, and how much one of them takes: the one place that measures.

On a GPU node memory means that of the GPUs the engines use; elsewhere it means host RAM.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil

from worker_agent import reaper
from worker_agent.hardware import Gpus
from worker_agent.memory import CPU_RESERVE, GPU_RESERVE, Reserve, budget

_RETURN_SECONDS = 15.0
_POLL_SECONDS = 0.2


class Gauge:
    """`devices` is how many GPUs one engine uses; the others of this node are left alone."""

    def __init__(self, gpus: Gpus, devices: int, reserve: Reserve | None) -> None:
        self._gpus, self._devices = gpus, min(devices, len(gpus))
        self.has_gpu = self._devices > 0
        self.total = gpus.vram(self._devices) if self.has_gpu else psutil.virtual_memory().total
        self.budget = budget(self.total, reserve or (GPU_RESERVE if self.has_gpu else CPU_RESERVE))

    async def used(self, pid: int) -> int:
        """Bytes that the processes below `pid` take now; 0 if that cannot be told."""
        return await asyncio.to_thread(self._used, pid)

    def _used(self, pid: int) -> int:
        tree = set(reaper.descendants(pid))
        if self.has_gpu:
            return self._gpus.used_by(tree)
        return sum(map(_resident, tree))

    async def returned(self, free_before: int, used: int) -> float | None:
        """Wait until a tree that took `used` bytes of the GPUs has given them back; seconds that took.

        `free_before` is `free()` from while it still ran. None if they did not come back in time (another
        program may have taken them). Host memory is back once the processes are gone.
        """
        started = time.monotonic()
        while self.has_gpu and used and self.free() < free_before + used // 2:
            if time.monotonic() - started > _RETURN_SECONDS:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - started

    def free(self) -> int:
        """Bytes nobody uses."""
        if self.has_gpu:
            return sum(load.vram_free for load in self._gpus.load()[: self._devices])
        return int(psutil.virtual_memory().available)


def _resident(pid: int) -> int:
    """Host memory of one process; what it shares with others is shared out, so that a sum is true."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss) if os.path.isdir(f"/proc/{pid}") else 0
    except psutil.Error:
        return 0
