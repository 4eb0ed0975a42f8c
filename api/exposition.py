"""The metrics as Prometheus reads them: counts of all processes from Redis, and the state of things now.

Whatever is away is left out, and `gputorrent_up` says what: a scrape must not fail because the thing it is to
tell about is broken. Each part is given 2 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections
from django.db.models import Count
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from api.shared import Shared
from jobs import metrics, vitals
from jobs.dispatch import Dispatcher
from jobs.metrics import Family, Series
from jobs.models import Batch, BatchStatus
from jobs.vitals import Figures
from nodes.models import Node, NodeState
from worker_agent.contract import ModelState

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
HEALS = "gt:heals"
_PART_SECONDS = 2.0
_PREFIX = "gputorrent_"
_Values = Mapping[Any, float | None]
"""Label values -> figure; None where there is none."""


class _Page:
    """What `generate_latest` wants of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Exposition:
    """What one process answers for all."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._ledger = Shared(_in_ledger)

    async def page(self) -> bytes:
        """Everything, in the text format 0.0.4. Never raises for what is away."""
        return generate_latest(_Page(await _families(self._dispatcher, self._ledger)))


async def _families(dispatcher: Dispatcher, ask_ledger: Shared[list[Metric]]) -> list[Metric]:
    pipe = dispatcher.pipe
    totals, board, processes, healed, rows = await asyncio.gather(
        _in_time(lambda: metrics.totals(pipe)),
        _in_time(lambda: _board(dispatcher)),
        _in_time(lambda: vitals.read(pipe)),
        _in_time(lambda: _heals(dispatcher)),
        _in_time(ask_ledger),
    )
    up = {("redis",): totals is not None, ("database",): rows is not None}
    families = [_gauge("up", "Whether the coordinator reaches it.", ("part",), up)]
    if totals is not None:
        families += _counted(totals)
    families += board or []
    families += _of_processes(processes or [])
    if healed is not None:
        help_ = "Differences between ledger, board and nodes that were found and mended; 0 in normal life."
        families.append(_counter("heals", help_, ("kind",), {(k,): n for k, n in healed.items()}))
    families += rows or []
    return families


async def _in_time(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, or None when it is not to be had in time."""
    try:
        async with asyncio.timeout(_PART_SECONDS):
            return await ask()
    except (redis.RedisError, DatabaseError, InterfaceError, TimeoutError):
        return None


async def _heals(dispatcher: Dispatcher) -> dict[str, int]:
    """Differences found and mended, by kind."""
    found = await dispatcher.pipe.send("HGETALL", HEALS)
    return {kind.decode(): int(count) for kind, count in sorted(found.items())}


async def _breakers(dispatcher: Dispatcher) -> list[Any]:
    """Circuit breakers that are not closed."""
    ask = getattr(dispatcher.board, "breakers", None)  # a board without breakers has none open
    return list(await ask()) if ask else []


# -- counted -------------------------------------------------------------------------------------------


def _counted(totals: dict[Series, int]) -> Iterator[Metric]:
    for family in metrics.FAMILIES.values():
        if family.buckets:
            yield _histogram(family, totals)
        else:
            zero: dict[Series, int] = {} if family.labels else {(): 0}
            found = metrics.of_family(totals, family) or zero
            yield _counter(family.name, family.help, family.labels, found)


def _histogram(family: Family, totals: dict[Series, int]) -> Metric:
    metric = HistogramMetricFamily(_PREFIX + family.name, family.help, labels=family.labels)
    for labels, histogram in sorted(metrics.histograms(totals, family).items()):
        running, buckets = 0, []
        for bound, count in sorted(histogram.counts.items()):
            running += count
            buckets.append((metrics.INFINITY if bound == float("inf") else f"{bound:g}", running))
        metric.add_metric(labels, buckets, histogram.sum_seconds)
    return metric


def _counter(name: str, help_: str, labels: Series, values: _Values) -> Metric:
    metric = CounterMetricFamily(_PREFIX + name, help_, labels=labels)
    for series, value in sorted(values.items()):
        if value is not None:
            metric.add_metric(series, value)
    return metric


def _gauge(name: str, help_: str, labels: Series, values: _Values) -> Metric:
    metric = GaugeMetricFamily(_PREFIX + name, help_, labels=labels)
    for series, value in sorted(values.items()):
        if value is not None:
            metric.add_metric(series, value)
    return metric


# -- now -----------------------------------------------------------------------------------------------


async def _board(dispatcher: Dispatcher) -> list[Metric]:
    snapshot = dispatcher.outlook.snapshot
    models = sorted(snapshot.by_model)
    queues = sorted(settings.RQ_QUEUES)
    (waiting, depths), loads, open_breakers, *tasks = await asyncio.gather(
        dispatcher.board.depths(models),
        dispatcher.board.loads(),
        _breakers(dispatcher),
        *(dispatcher.pipe.send("LLEN", f"rq:queue:{queue}") for queue in queues),
    )
    slots, in_flight, workers = {}, {}, {}
    for name in models:
        ready = {
            c.node
            for c in dispatcher.outlook.candidates(name)
            if c.takes_work and c.state == ModelState.READY
        }
        workers[name,] = len(ready)
        for node, model in snapshot.by_model[name]:
            slots[node.name, name] = model.slots if node.id in ready else 0
            in_flight[node.name, name] = loads.get(f"{node.id}/{name}", 0)
    up = {(n.name,): float(n.takes_work and n.id in snapshot.leased) for n in snapshot.nodes.values()}
    place = ("node", "model")
    names = {node.id: node.name for node in snapshot.nodes.values()}
    states = {(names.get(b.node, b.node), b.model, str(b.state)): 1.0 for b in open_breakers}
    return [
        _gauge("queue_depth", "Jobs that wait for a slot.", ("model",), {(m,): depths[m] for m in models}),
        _gauge("queue_depth_all", "Jobs that wait for a slot, of all models.", (), {(): waiting}),
        _gauge("slots", "Requests run at once; 0 while the model takes no work.", place, slots),
        _gauge("in_flight", "Attempts on the board.", place, in_flight),
        _gauge("model_workers", "Live nodes that have the model ready.", ("model",), workers),
        _gauge("node_up", "Whether the node is online and holds its lease.", ("node",), up),
        _gauge("breaker", "Circuit breakers that are not closed.", (*place, "state"), states),
        _gauge(
            "deferred_tasks",
            "Tasks that wait for the jobworker.",
            ("queue",),
            {(q,): n for q, n in zip(queues, tasks, strict=True)},
        ),
    ]


def _of_processes(processes: list[Figures]) -> list[Metric]:
    def of(figure: Callable[[Figures], float]) -> dict[Series, float]:
        return {(p.process,): figure(p) for p in processes}

    label = ("process",)
    behind, jobs = of(lambda p: p.records_behind), of(lambda p: p.jobs)
    return [
        _gauge("process_resident_memory_bytes", "Memory in use.", label, of(lambda p: p.resident_bytes)),
        _gauge("process_open_fds", "Open file descriptors.", label, of(lambda p: p.open_fds)),
        _gauge("process_threads", "Threads.", label, of(lambda p: p.threads)),
        _counter("process_cpu_seconds", "User and system time.", label, of(lambda p: p.cpu_seconds)),
        _gauge("process_start_time_seconds", "Since the epoch.", label, of(lambda p: p.started_at)),
        _gauge("process_jobs", "Jobs whose callers wait on this process.", label, jobs),
        _gauge("records_behind", "Records not yet in the ledger.", label, behind),
    ]


def _in_ledger() -> list[Metric]:
    """What the ledger has of the nodes' last heartbeats, and of batches: four queries."""
    close_old_connections()
    try:
        rows = Node.objects.exclude(state=NodeState.REVOKED).prefetch_related("gpus", "models")
        return [*_of_nodes(list(rows)), _batches()]
    finally:
        close_old_connections()


def _of_nodes(nodes: list[Node]) -> list[Metric]:
    def each(figure: Callable[[Node], float | None]) -> dict[Series, float | None]:
        return {(n.name,): figure(n) for n in nodes}

    def gpus(figure: Callable[[Any], float | None]) -> dict[Series, float | None]:
        return {(n.name, str(g.index)): figure(g) for n in nodes for g in n.gpus.all()}

    def models(figure: Callable[[Any], float | None]) -> dict[Series, float | None]:
        return {(n.name, m.name): figure(m) for n in nodes for m in n.models.all()}

    states = [s for s in NodeState.values if s != NodeState.REVOKED]
    state = {(n.name, s): float(n.state == s) for n in nodes for s in states}
    loaded = {(n.name, m.name, m.state): 1.0 for n in nodes for m in n.models.all()}
    node, gpu, place = ("node",), ("node", "gpu"), ("node", "model")
    return [
        _gauge("node_state", "1 for the state the node is in.", (*node, "state"), state),
        _gauge("node_last_beat_timestamp_seconds", "Since the epoch.", node, each(_last_beat)),
        _gauge("node_cpu_usage_ratio", "Of all cores.", node, each(lambda n: n.cpu_usage)),
        _gauge("node_ram_free_bytes", "Host memory.", node, each(lambda n: n.ram_free)),
        _gauge("node_disk_free_bytes", "Disk.", node, each(lambda n: n.disk_free)),
        _gauge("node_memory_used_bytes", "What its engines take.", node, each(lambda n: n.memory_used)),
        _gauge("node_memory_budget_bytes", "What they may take.", node, each(lambda n: n.memory_budget)),
        _gauge("gpu_utilisation_ratio", "GPU utilisation.", gpu, gpus(lambda g: g.utilisation)),
        _gauge("gpu_vram_bytes", "GPU memory.", gpu, gpus(lambda g: g.vram_total)),
        _gauge("gpu_vram_free_bytes", "GPU memory that is free.", gpu, gpus(lambda g: g.vram_free)),
        _gauge("gpu_temperature_celsius", "GPU temperature.", gpu, gpus(lambda g: g.temperature_c)),
        _gauge("gpu_power_watts", "GPU power draw.", gpu, gpus(lambda g: g.power_w)),
        _gauge("model_state", "1 for the state a model on a node is in.", (*place, "state"), loaded),
        _gauge("model_kv_cache_ratio", "KV cache in use.", place, models(lambda m: m.kv_cache_usage)),
        _gauge("model_tokens_per_second", "Generated.", place, models(lambda m: m.tokens_per_s)),
        _gauge("model_running", "Requests in the engine's batch.", place, models(lambda m: m.running)),
        _gauge("model_waiting", "Requests queued in the engine.", place, models(lambda m: m.waiting)),
    ]


def _batches() -> Metric:
    found = dict(Batch.objects.values_list("status").annotate(n=Count("pk")).order_by())
    values = {(status,): float(found.get(status, 0)) for status in BatchStatus.values}
    return _gauge("batches", "Batches of which there are records, by status.", ("status",), values)


def _last_beat(node: Node) -> float | None:
    return node.last_beat_at.timestamp() if node.last_beat_at else None
