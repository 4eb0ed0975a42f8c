"""What the ledger says, in a constant number of queries, however many nodes and jobs there are.

GPUs and models change only with a beat of their node, so only those of nodes that changed are read again.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from django.db.models import QuerySet
from django.utils import timezone

from api.models import ApiKey
from dashboard import feed
from dashboard.state import Event, GpuLine, JobLine
from jobs.models import Job, JobState
from nodes.models import Gpu, Node, NodeEvent, NodeModel, NodeState

JOBS: Final = 50
"""So many of the oldest jobs are shown."""
_FAILED_WITHIN: Final = datetime.timedelta(hours=24)
_NAMED: Final = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeRow:
    beat_at: float | None
    id: str
    name: str
    state: str
    reason: str
    cpu_usage: float
    memory_used: int
    memory_budget: int
    disk_free: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class ModelRow:
    name: str
    state: str
    progress: float
    slots: int
    reason: str


@dataclass(slots=True)
class Rows:
    nodes: list[NodeRow] = field(default_factory=list)
    gpus: dict[str, list[GpuLine]] = field(default_factory=dict)  # by node
    models: dict[str, list[ModelRow]] = field(default_factory=dict)  # by node
    jobs: list[JobLine] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    events: list[Event] = field(default_factory=list)
    keys: int = 0
    ever_asked: bool = False


def read(before: Rows | None = None) -> Rows:
    """At most twelve queries. What is as it was `before` is taken from there, the same objects. Raises what
    the database raises."""
    open_jobs = {
        state: Job.objects.filter(state=state).order_by() for state in (JobState.PENDING, JobState.RUNNING)
    }
    # Nodes first: what belongs to a beat is committed with it, so what is read later is no older.
    nodes = _nodes()
    changed = _changed(nodes, before) if before else None
    return Rows(
        nodes=nodes,
        gpus=_kept(nodes, before.gpus if before else {}, _gpus(changed), changed),
        models=_kept(nodes, before.models if before else {}, _models(changed), changed),
        jobs=_jobs(),
        running=open_jobs[JobState.RUNNING].count(),
        waiting=open_jobs[JobState.PENDING].count(),
        events=[*_of_nodes(), *_of_jobs(), *_of_keys()],
        keys=ApiKey.objects.filter(revoked_at=None).count(),
        ever_asked=Job.objects.order_by().exists(),
    )


def _nodes() -> list[NodeRow]:
    columns = (
        *("last_beat_at", "id", "name", "state", "state_reason", "cpu_usage", "memory_used", "memory_budget"),
        *("disk_free", "in_flight"),
    )
    rows: Any = Node.objects.exclude(state=NodeState.REVOKED).order_by("name").values_list(*columns)
    return [NodeRow(_seconds(beat), *rest) for beat, *rest in rows]


def _changed(nodes: list[NodeRow], before: Rows) -> list[str] | None:
    """Nodes that are not as they were; None for more than are worth being named."""
    were = {node.id: node for node in before.nodes}
    found = [node.id for node in nodes if were.get(node.id) != node]
    return found if len(found) <= _NAMED else None


def _kept(
    nodes: list[NodeRow], before: dict[str, list[T]], read: dict[str, list[T]], changed: list[str] | None
) -> dict[str, list[T]]:
    """The old of all nodes with what was read of the changed ones."""
    if changed is None:
        return read
    again = set(changed)
    return {n.id: (read if n.id in again else before).get(n.id, []) for n in nodes}


def _gpus(of: list[str] | None) -> dict[str, list[GpuLine]]:
    found: dict[str, list[GpuLine]] = defaultdict(list)
    columns = ("node_id", "index", "name", "utilisation", "vram_total", "vram_free", "temperature_c")
    rows = _of(Gpu.objects.order_by("node_id", "index"), of).values_list(*columns)
    for node, index, name, utilisation, total, free, temperature in rows:
        used = max(0, total - free)
        line = GpuLine(index, name, _percent(utilisation), used, total, _whole(temperature))
        found[node].append(line)
    return found


def _models(of: list[str] | None) -> dict[str, list[ModelRow]]:
    found: dict[str, list[ModelRow]] = defaultdict(list)
    columns = ("node_id", "name", "state", "progress", "slots", "reason")
    for node, *rest in _of(NodeModel.objects.order_by("node_id", "name"), of).values_list(*columns):
        found[node].append(ModelRow(*rest))
    return found


def _of(rows: QuerySet[Any], nodes: list[str] | None) -> QuerySet[Any]:
    return rows if nodes is None else rows.filter(node_id__in=nodes)


def _jobs() -> list[JobLine]:
    """The oldest ones: those that wait or run for longest are the ones to look at."""
    columns = (
        "id",
        "model",
        "key__name",
        "node_id",
        "node__name",
        "state",
        "stream",
        "asynchronous",
        "created_at",
    )
    found = []
    for state in (JobState.PENDING, JobState.RUNNING):
        rows = Job.objects.filter(state=state).order_by("created_at").values_list(*columns)[:JOBS]
        for id_, model, key, node, node_name, now, stream, asynchronous, made in rows:
            kind = "asynchronous" if asynchronous else "stream" if stream else "whole"
            at = made.timestamp()
            found.append(JobLine(id_, model, key or "", node or "", node_name or "", now, kind, at, None))
    return sorted(found, key=lambda j: j.created_at)[:JOBS]


# -- what happened -------------------------------------------------------------------------------------


def _of_nodes() -> list[Event]:
    # By the key: it grows with time, and an index by time alone is not there.
    columns = ("at", "node_id", "node__name", "was", "now", "reason")
    rows = NodeEvent.objects.order_by("-id").values_list(*columns)[: feed.MOST]
    return [feed.of_node(at.timestamp(), *rest) for at, *rest in rows]


def _of_jobs() -> list[Event]:
    since = timezone.now() - _FAILED_WITHIN
    rows = (
        Job.objects.filter(state=JobState.FAILED, created_at__gte=since)
        .order_by("-created_at")
        .values_list("finished_at", "created_at", "id", "model", "error_code")[: feed.MOST // 2]
    )
    return [feed.of_job((end or made).timestamp(), *rest) for end, made, *rest in rows]


def _of_keys() -> list[Event]:
    revoked = ApiKey.objects.filter(revoked_at__isnull=False).order_by("-revoked_at")
    rows = revoked.values_list("revoked_at", "id", "name")[:5]
    return [feed.of_key(at.timestamp(), key, name) for at, key, name in rows if at]


def _seconds(moment: datetime.datetime | None) -> float | None:
    return round(moment.timestamp(), 1) if moment else None


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * share)


def _whole(figure: Any) -> int | None:
    return None if figure is None else round(figure)
