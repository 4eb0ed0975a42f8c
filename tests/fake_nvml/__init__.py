"""GPUs that are not there: see pynvml.py, which stands for NVIDIA's library where this folder comes first."""

from __future__ import annotations

from pathlib import Path

from tests.journeys.cluster import ROOT, Cluster


def give(cluster: Cluster, gpus: str) -> None:
    """Agents started from now on have these GPUs: ``RTX 4090:24, L40S:48``, with GiB of memory."""
    cluster.env["PYTHONPATH"] = f"{Path(__file__).parent}:{ROOT}"
    cluster.env["FAKE_NVML"] = gpus
