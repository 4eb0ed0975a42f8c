"""How capable a node is next to others: a weight. Pure.

Making one token reads every weight of the model from memory once, so a GPU decodes about as fast as its
memory is wide. The table has the memory bandwidth that each vendor publishes in the data sheet or on the
product page of the card, in GB/s; a node's weight is the sum over its GPUs, with 1000 GB/s as 1. What a node
turns out to do corrects that (`correct`), and an operator's label ``weight=2`` overrides both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

UNIT_GB_S: Final = 1000.0
CPU_WEIGHT: Final = 0.1
"""Eight channels of DDR4-2400 or two of DDR5-6400 move about 100 to 150 GB/s."""

LABEL: Final = "weight"
LEAST, MOST = 0.01, 1000.0

BANDWIDTH: Final[Mapping[tuple[str, ...], float]] = {
    # NVIDIA, data centre
    ("b300",): 8000, ("b200",): 8000, ("gb200",): 8000,
    ("h200",): 4800, ("gh200",): 4000, ("h100",): 3350, ("h100", "nvl"): 3900, ("h100", "pcie"): 2000,
    ("h800",): 3350, ("h20",): 4000,
    ("a100",): 2039, ("a100", "pcie"): 1935, ("a100", "40gb"): 1555,
    ("a100", "pcie", "40gb"): 1555, ("a800",): 2039,
    ("l40s",): 864, ("l40",): 864, ("l4",): 300,
    ("a40",): 696, ("a30",): 933, ("a10",): 600, ("a10g",): 600, ("a16",): 200, ("a2",): 200,
    ("v100",): 900, ("v100s",): 1134, ("t4",): 300, ("p100",): 732, ("p40",): 346, ("p4",): 192,
    # NVIDIA, workstation
    ("pro", "6000"): 1792, ("6000", "ada"): 960, ("5000", "ada"): 576, ("4500", "ada"): 432,
    ("4000", "ada"): 360, ("a6000",): 768, ("a5500",): 768, ("a5000",): 768, ("a4500",): 640,
    ("a4000",): 448, ("a2000",): 288, ("quadro", "8000"): 672, ("quadro", "6000"): 672,
    ("quadro", "5000"): 448, ("titan", "rtx"): 672,
    # NVIDIA GeForce
    ("5090",): 1792, ("5080",): 960, ("5070", "ti"): 896, ("5070",): 672, ("5060", "ti"): 448, ("5060",): 448,
    ("4090",): 1008, ("4080", "super"): 736, ("4080",): 717, ("4070", "ti", "super"): 672,
    ("4070", "ti"): 504, ("4070",): 504, ("4060", "ti"): 288, ("4060",): 272,
    ("3090", "ti"): 1008, ("3090",): 936, ("3080", "ti"): 912, ("3080",): 760, ("3070", "ti"): 608,
    ("3070",): 448, ("3060", "ti"): 448, ("3060",): 360,
    ("2080", "ti"): 616, ("2080",): 448, ("2070",): 448, ("1080", "ti"): 484,
    # AMD
    ("mi355x",): 8000, ("mi350x",): 8000, ("mi325x",): 6000, ("mi300x",): 5300, ("mi300a",): 5300,
    ("mi250x",): 1638, ("mi250",): 1638,  # each of the two dies is a device of its own
    ("mi210",): 1638, ("mi100",): 1229,
    ("7900", "xtx"): 960, ("7900", "xt"): 800, ("w7900",): 864, ("w7800",): 576,
}  # fmt: skip
"""Words of a GPU's name, as its driver tells it, to GB/s. The entry with most words that all occur wins."""

_LAPTOP: Final = 0.6
"""Cards for laptops share a name with a wider one: 576 of 1008 GB/s (4090), 448 of 760 (3080)."""

_BY_VRAM: Final = ((70, 2000.0), (38, 800.0), (20, 700.0), (14, 450.0), (7, 300.0), (0, 200.0))
"""GiB of an unknown card to GB/s: about the median of the cards above of at least that size."""

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Weight:
    """`source` says where the figure comes from, for people."""

    value: float
    source: str


def bandwidth(name: str, vram: int) -> tuple[float, bool]:
    """A GPU's memory bandwidth in GB/s, and whether its name is known. `vram` in bytes."""
    words = set(_WORD.findall(name.lower()))
    known = [(len(key), value) for key, value in BANDWIDTH.items() if words.issuperset(key)]
    if known:
        return max(known)[1] * (_LAPTOP if words & {"laptop", "mobile"} else 1.0), True
    if not vram:
        return UNIT_GB_S, False
    return next(value for gib, value in _BY_VRAM if vram >= gib << 30), False


def weigh(gpus: Sequence[tuple[str, int]], labels: Mapping[str, str]) -> Weight:
    """A node's weight by its operator's label, else by its GPUs (name, bytes of VRAM), else as a CPU."""
    told = _told(labels.get(LABEL, ""))
    if told is not None:
        return Weight(told, "label")
    if not gpus:
        return Weight(CPU_WEIGHT, "CPU")
    found = [bandwidth(*gpu) for gpu in gpus]
    names = ", ".join(dict.fromkeys(name for name, _ in gpus))
    count = f"{len(gpus)} x " if len(gpus) > 1 else ""
    guess = "" if all(known for _, known in found) else ", by VRAM"
    return Weight(round(sum(value for value, _ in found) / UNIT_GB_S, 3), f"{count}{names}{guess}")


def _told(label: str) -> float | None:
    """The label's figure; a label that is no positive number is passed over."""
    try:
        value = float(label)
    except ValueError:
        return None
    return min(MOST, max(LEAST, value)) if math.isfinite(value) and value > 0 else None


LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
"""What is measured moves a weight this far at most: a wrong figure must not starve a node, or flood it."""


def usual(nodes: Iterable[tuple[float, str, float]]) -> float:
    """What the nodes that serve a model usually do for their weights: the median of one request's decode
    speed (tokens/s) over the weight. 0 if fewer than two are measured: one alone says nothing.

    The three of each node are its weight, where that is from, and its speed, 0 where not (sufficiently)
    measured. A label's weight stands as it is, and says nothing of the others.
    """
    measured = [speed / weight for weight, source, speed in nodes if speed > 0 and source != "label"]
    return median(measured) if len(measured) > 1 else 0.0


def correct(weight: Weight, speed: float, usual: float) -> Weight:
    """Correct a node's weight by its decode speed (tokens/s) for a model. What counts is how it does next to
    what its class predicts, compared with what is `usual`: models differ, classes stay."""
    if weight.source == "label" or not usual or speed <= 0:
        return weight
    factor = min(MOST_FACTOR, max(LEAST_FACTOR, speed / weight.value / usual))
    if abs(factor - 1.0) < 0.05:
        return weight
    return Weight(round(weight.value * factor, 3), f"{weight.source}, measured x{factor:.2f}")
