"""The history of a node's figures: one sample for each heartbeat, thinned as it ages."""

from __future__ import annotations

import datetime

from django.conf import settings
from django.db.models import Max
from django.utils import timezone

from nodes.models import Gpu, Node, NodeSample
from worker_agent.contract import Heartbeat

KEEP_EVERY = datetime.timedelta(minutes=5)
WHOLE_FOR = datetime.timedelta(hours=1)


def take(node: Node, beat: Heartbeat) -> NodeSample:
    """Store one sample. Temperatures and utilisation are those of the busiest GPU, power is their sum."""
    now = timezone.now()
    kept = NodeSample.objects.filter(node=node, keep=True).aggregate(at=Max("at"))["at"]
    loads = beat.gpus
    utilisation = [g.utilisation for g in loads if g.utilisation is not None]
    temperature = [g.temperature_c for g in loads if g.temperature_c is not None]
    power = [g.power_w for g in loads if g.power_w is not None]
    total = dict(Gpu.objects.filter(node=node).values_list("index", "vram_total"))
    measured = [m.ttft_ms for m in beat.models if m.ttft_ms]
    return NodeSample.objects.create(
        node=node,
        at=now,
        keep=kept is None or now - kept >= KEEP_EVERY,
        in_flight=len(beat.attempts),
        running=sum(m.running for m in beat.models),
        waiting=sum(m.waiting for m in beat.models),
        tokens_per_s=sum(m.tokens_per_s for m in beat.models),
        ttft_ms=sum(measured) / len(measured) if measured else 0.0,
        kv_cache_usage=max((m.kv_cache_usage for m in beat.models), default=0.0),
        gpu_utilisation=max(utilisation, default=None),
        gpu_temperature_c=max(temperature, default=None),
        gpu_power_w=sum(power) if power else None,
        vram_used=sum(max(0, total.get(g.index, g.vram_free) - g.vram_free) for g in loads),
        memory_used=beat.memory_used,
        ram_free=beat.ram_free,
        cpu_usage=beat.cpu_usage,
    )


def thin() -> int:
    """Drop what is too old: after an hour all but one in five minutes, after the retention everything.

    Returns how many rows went.
    """
    now = timezone.now()
    dropped, _ = NodeSample.objects.filter(keep=False, at__lt=now - WHOLE_FOR).delete()
    retention = datetime.timedelta(seconds=settings.SAMPLE_TTL_SECONDS)
    expired, _ = NodeSample.objects.filter(at__lt=now - retention).delete()
    return dropped + expired
