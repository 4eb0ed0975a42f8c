"""Whether the cluster is well, in words, and what to do if it is not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dashboard.state import Finding, Level, ModelFigures, ModelLine, NodeCard, Shown, Totals
from worker_agent.contract import ModelState

HOT_C = 90
LOW_DISK = 5 * 1024**3
_NAMES = 5  # so many are named, the others counted
_ERRORS_AT_LEAST, _ERRORS_SHARE = 5, 0.05


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers. `jobworker` is None where Redis could not be asked."""

    redis: bool = True
    database: bool = True
    jobworker: bool | None = True


def node_level(state: Shown, models: Iterable[ModelLine], hottest: int | None, disk_free: int) -> Level:
    """How much a node wants to be looked at."""
    if state in {Shown.SILENT, Shown.UNHEALTHY}:
        return Level.BAD
    if state == Shown.GONE:
        return Level.FINE
    failed = any(m.breaker or m.state == ModelState.FAILED for m in models)
    hot = hottest is not None and hottest >= HOT_C
    if state == Shown.PENDING or failed or hot or 0 < disk_free < LOW_DISK:
        return Level.WARN
    loading = any(m.state in {ModelState.LOADING, ModelState.DOWNLOADING} for m in models)
    return Level.NOTE if state == Shown.DRAINING or loading else Level.FINE


def findings(
    parts: Parts, nodes: Sequence[NodeCard], models: Sequence[ModelFigures], totals: Totals
) -> list[Finding]:
    """Everything that is not as it should be, the worst first. Empty: all is well."""
    found = [*_parts(parts), *_nodes(nodes), *_models(models), *_errors(totals)]
    return sorted(found, key=lambda f: -f.level)


def _parts(parts: Parts) -> Iterable[Finding]:
    if not parts.redis:
        yield Finding(
            Level.BAD, "Redis does not answer.", "Nothing new can be placed: look whether it is up."
        )
    if not parts.database:
        yield Finding(
            Level.BAD,
            "The database does not answer.",
            "Completions go on; jobs, batches and this page's lists wait for it.",
        )
    if parts.jobworker is False:
        yield Finding(
            Level.BAD,
            "No jobworker runs.",
            "Asynchronous jobs and batches stand still, and lost nodes are not noticed: "
            "start manage.py jobworker.",
        )


def _nodes(nodes: Sequence[NodeCard]) -> Iterable[Finding]:
    here = [n for n in nodes if n.state != Shown.GONE]
    if silent := [n.name for n in here if n.state in {Shown.SILENT, Shown.UNHEALTHY}]:
        yield Finding(
            Level.BAD,
            f"{_count(silent, 'node does', 'nodes do')} not answer: {_listed(silent)}.",
            "Look whether the host is up, its agent runs, and it reaches this address and Redis.",
            "admin:nodes_node_changelist",
        )
    if pending := [n.name for n in here if n.state == Shown.PENDING]:
        yield Finding(
            Level.WARN,
            f"{_count(pending, 'node waits', 'nodes wait')} for approval: {_listed(pending)}.",
            "Approve it if it is yours, revoke it if not.",
            "admin:nodes_node_changelist",
            "?state__exact=pending",
        )
    answering = [n for n in here if n.state in {Shown.ONLINE, Shown.DRAINING}]
    if broken := [f"{m.name} on {n.name}" for n in answering for m in n.models if m.breaker == "open"]:
        yield Finding(
            Level.WARN,
            f"{_count(broken, 'breaker is', 'breakers are')} open: {_listed(broken)}.",
            "Too many faults in a row. It is probed by itself; the agent's log says what its engine had.",
        )
    if failed := [
        f"{m.name} on {n.name}" for n in answering for m in n.models if m.state == ModelState.FAILED
    ]:
        yield Finding(
            Level.WARN,
            f"{_count(failed, 'model', 'models')} could not be loaded: {_listed(failed)}.",
            "The node's card has the reason.",
            "admin:nodes_nodemodel_changelist",
            "?state__exact=failed",
        )
    if hot := [n.name for n in answering if max((g.temperature or 0 for g in n.gpus), default=0) >= HOT_C]:
        yield Finding(
            Level.WARN,
            f"{_count(hot, 'node has', 'nodes have')} a GPU at {HOT_C} °C or more: {_listed(hot)}.",
            "Look after its cooling, or drain it.",
        )
    if full := [n.name for n in answering if 0 < n.disk_free < LOW_DISK]:
        yield Finding(
            Level.WARN,
            f"{_count(full, 'node has', 'nodes have')} less than 5 GiB of disk left: {_listed(full)}.",
            "Models can no longer be fetched there.",
        )
    if here and not answering and not silent:
        yield Finding(Level.WARN, "No node is online.", "Start an agent on a GPU host.")
    elif nodes and not here:
        yield Finding(Level.BAD, "All nodes have left.", "Start an agent on a GPU host.")
    if draining := [n.name for n in here if n.state == Shown.DRAINING]:
        yield Finding(
            Level.NOTE,
            f"{_count(draining, 'node finishes its work and takes', 'nodes finish their work and take')} "
            f"nothing new: {_listed(draining)}.",
        )


def _models(models: Sequence[ModelFigures]) -> Iterable[Finding]:
    for m in models:
        if m.waiting and not m.nodes_ready:
            yield Finding(
                Level.WARN,
                f"{_count(m.waiting, 'request waits', 'requests wait')} for {m.name}, "
                "which no node has ready.",
                "It is being loaded, or no node can load it now: see the nodes' cards.",
            )
        elif m.waiting >= max(m.slots, 1):
            yield Finding(
                Level.WARN,
                f"{_count(m.waiting, 'request waits', 'requests wait')} for {m.name}: "
                f"all {m.slots} slots are taken.",
                "Load it on another node, or join a host.",
            )


def _errors(totals: Totals) -> Iterable[Finding]:
    if totals.errors >= _ERRORS_AT_LEAST and totals.errors > _ERRORS_SHARE * totals.requests:
        yield Finding(
            Level.WARN,
            f"{totals.errors} of {totals.requests} requests of the last minute ended with an error.",
            "The failed jobs say why.",
            "admin:jobs_job_changelist",
            "?state__exact=failed",
        )


def headline(found: Sequence[Finding], nodes: Sequence[NodeCard], ready: int) -> Finding:
    """The line on top. `ready` models can be asked."""
    if not nodes:
        advice = "It takes one command on the host."
        return Finding(Level.NOTE, "No GPU host has joined yet.", advice, "join", link="Join a host")
    if worst := next((f for f in found if f.level >= Level.WARN), None):
        return worst
    states = Counter(n.state for n in nodes)
    online = states[Shown.ONLINE]
    if not ready:
        return Finding(Level.NOTE, f"{_count(online, 'node is', 'nodes are')} online, no model is ready yet.")
    return Finding(
        Level.FINE,
        f"All is well: {_count(online, 'node', 'nodes')} online, {_count(ready, 'model', 'models')} ready.",
    )


def _count(what: int | Sequence[object], one: str, many: str) -> str:
    n = what if isinstance(what, int) else len(what)
    return f"{n} {one if n == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
