"""Memory of a node and of its models: the arithmetic. Pure; sizes in bytes.

Where the constants come from: 1.2 x the weights on disk covers what an engine makes beside them while it
loads and runs (activations, the sampler's buffers). The overheads are what is left of a measured engine when
weights and KV cache are taken off: three Python processes with torch on a CPU (measured: 3.4 GiB in all for a
135 M model with 1 GiB of KV cache), a CUDA context with its graphs and libraries on a GPU. Both only count
until a load was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
WEIGHTS_FACTOR = 1.2
CPU_OVERHEAD = 2150 * MIB
GPU_OVERHEAD = 1500 * MIB
LEAST_KV_CACHE = 1 * GIB
"""A model that shares a GPU gets at least so much KV cache if the budget has it."""

_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a node's owner keeps free: a share of the whole, or a size."""

    share: float = 0.0
    size: int = 0

    def of(self, total: int) -> int:
        """Bytes of `total` that are kept free."""
        return min(total, self.size or int(self.share * total))


GPU_RESERVE = Reserve(share=0.10)
CPU_RESERVE = Reserve(share=0.25)


def parse_size(text: str) -> int:
    """``4GiB``, ``4G``, ``512MiB``, ``1000000``. Units are powers of 1024. Raises `ValueError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size like 4GiB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def parse_reserve(text: str) -> Reserve:
    """``10%``, ``0.1`` or a size. Raises `ValueError`."""
    text = text.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return Reserve(size=parse_size(text))
    if 0 <= share < 1:
        return Reserve(share=share)
    if text.endswith("%") or not MIB <= share < 1 << 60:
        raise ValueError(f"{text!r} is neither a share below 1 (0.1, 10%) nor a size (4GiB)")
    return Reserve(size=int(share))


def human(size: int) -> str:
    """``21.5 GiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def budget(total: int, reserve: Reserve) -> int:
    """What the engines of a node may take in all."""
    return total - reserve.of(total)


def cpu_need(weights: int, kv_cache: int) -> int:
    """Host memory of an engine on a CPU."""
    return int(weights * WEIGHTS_FACTOR) + kv_cache + CPU_OVERHEAD


def gpu_needs(weights: Mapping[str, int], budget: int) -> dict[str, int]:
    """GPU memory for each model, KV cache included. An engine fills what it is given with KV cache, so what
    the models leave over is dealt out: all of it evenly if they fit together, else half of it to whichever is
    loaded. A model that is alone gets everything.
    """
    bases = {name: int(size * WEIGHTS_FACTOR) + GPU_OVERHEAD for name, size in weights.items()}
    spare = budget - sum(bases.values())
    if spare >= LEAST_KV_CACHE * len(bases):
        return {name: base + spare // len(bases) for name, base in bases.items()}
    return {
        name: base + max(LEAST_KV_CACHE, (budget - base) // (1 if len(bases) == 1 else 2))
        for name, base in bases.items()
    }


def never_fits(need: int, budget: int) -> str:
    """Why a model can never be loaded; empty if it can."""
    if need <= budget:
        return ""
    return f"needs {human(need)}, this node gives {human(budget)}"


def sleep_level(ram_free: int, weights: int) -> int:
    """Sleep level 1 keeps the weights in host memory, where there is half as much again for them; else 2."""
    return 1 if ram_free > 1.5 * weights else 2
