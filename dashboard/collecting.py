"""One look at the whole cluster: what Redis says, what the ledger says, and the state made of both.

What Redis says is asked from the loop and is little; the rest is done in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError

from dashboard import feed, figures, health
from dashboard.feed import BreakerTold
from dashboard.recent import Counts, Recent
from dashboard.rows import ModelRow, NodeRow, Rows
from dashboard.state import JobLine, ModelFigures, ModelLine, NodeCard, Shown, State, Totals
from gputorrent.redis import Pipe
from jobs import tasks
from jobs.board import Board
from jobs.breaker import Breaker
from nodes.models import NodeState
from nodes.view import Snapshot
from worker_agent.contract import ModelState

MOST_MODELS = 30
_AT_ONCE = 100
_WORKERS = "rq:workers"
_Tokens = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Wire:
    """What Redis says. `leased` is None where it could not be asked."""

    at: float
    leased: frozenset[str] | None = None
    loads: Mapping[str, int] = field(default_factory=dict)
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    windows: list[Counts] = field(default_factory=list)
    seconds: float = 60.0
    jobworker: bool | None = None
    told: list[BreakerTold] = field(default_factory=list)


async def ask(pipe: Pipe, snapshot: Snapshot, recent: Recent) -> Wire:
    """Three trips. Where Redis is away, the answer says so."""
    board = Board(pipe)
    models = sorted(snapshot.by_model)
    try:
        look, (_, depths), (windows, seconds), works = await asyncio.gather(
            board.look(), board.depths(models), recent.read(pipe), _a_jobworker_lives(pipe)
        )
        told = await feed.note_breakers(pipe, look.breakers.values())
    except redis.RedisError:
        return Wire(time.time())
    leased = snapshot.leased
    return Wire(time.time(), leased, look.loads, look.breakers, depths, windows, seconds, works, told)


async def _a_jobworker_lives(pipe: Pipe) -> bool:
    names = [name.decode().rpartition(":")[2] for name in await pipe.send("SMEMBERS", _WORKERS)]
    return bool(names and await pipe.send("EXISTS", *(tasks.worker_key(name) for name in names)))


# -- the state -----------------------------------------------------------------------------------------


class Cards:
    """The nodes' cards of the last round: of a thousand nodes few change in a second."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, NodeCard]] = {}

    def of(self, rows: Rows, wire: Wire) -> list[NodeCard]:
        """A card for each node; the same object where nothing has changed."""
        made = {}
        for number, node in enumerate(rows.nodes):
            if not number % _AT_ONCE:
                time.sleep(0)  # lets the loop's thread go first
            models = rows.models.get(node.id, [])
            places = [f"{node.id}/{m.name}" for m in models]
            loads = [wire.loads.get(place, 0) for place in places]
            breakers = [wire.breakers.get(place) for place in places] if wire.breakers else []
            key = (node, rows.gpus.get(node.id), models, shown(node, wire), loads, breakers)
            known = self._known.get(node.id)
            made[node.id] = known if known and known[0] == key else (key, _card(node, rows, wire))
        self._known = made
        return [card for _, card in made.values()]


def build(
    wire: Wire,
    read: Callable[[Rows | None], Rows],
    before: Rows | None = None,
    tokens: _Tokens = lambda _: None,
    cards: Cards | None = None,
) -> tuple[State, Rows]:
    """The state of now; where the ledger is away, with what it said `before`. Takes milliseconds with a
    thousand nodes: not for the loop. Returns the rows as well, for the next time."""
    try:
        rows, database = read(before), True
    except (DatabaseError, InterfaceError):
        rows, database = before or Rows(), False
    whole, each = _sums(wire)
    nodes = (cards or Cards()).of(rows, wire)
    models = _models(nodes, wire, each)
    totals = Totals(
        _rate(whole.requests, wire),
        _rate(whole.errors, wire),
        whole.requests,
        whole.errors,
        _rate(whole.completion_tokens, wire),
        _rate(whole.prompt_tokens, wire),
        figures.quantile(whole.first_tokens, 0.5),
        figures.quantile(whole.first_tokens, 0.95),
    )
    parts = health.Parts(wire.leased is not None, database, wire.jobworker)
    names = {node.id: node.name for node in rows.nodes}
    breakers = [feed.of_breaker(told, names) for told in wire.told]
    state = State(
        at=wire.at,
        totals=totals,
        models=models[:MOST_MODELS],
        nodes=nodes,
        jobs=[_with_tokens(job, tokens) for job in rows.jobs],
        running=rows.running,
        waiting=rows.waiting,
        events=feed.merged([*rows.events, *breakers]),
        findings=health.findings(parts, nodes, models, totals),
        keys=rows.keys,
        ever_asked=rows.ever_asked,
        models_known=len(models),
        models_ready=sum(bool(m.nodes_ready) for m in models),
    )
    return state, rows


def _sums(wire: Wire) -> tuple[figures.Sums, dict[str, figures.Sums]]:
    counts: Counts = {}
    for window in wire.windows:
        for series, count in window.items():
            counts[series] = counts.get(series, 0) + count
    return figures.sums(counts)


def _rate(count: int, wire: Wire) -> float:
    return round(count / wire.seconds, 2)


def shown(node: NodeRow, wire: Wire) -> Shown:
    """A node without a lease does not answer, whatever the ledger still says; one that has only just spoken
    to us may not have taken its lease yet."""
    if node.state in {NodeState.ONLINE, NodeState.DRAINING} and wire.leased is not None:
        quiet = node.beat_at is None or wire.at - node.beat_at > settings.LEASE_SECONDS
        if node.id not in wire.leased and quiet:
            return Shown.SILENT
    return Shown(node.state)


def _card(node: NodeRow, rows: Rows, wire: Wire) -> NodeCard:
    state = shown(node, wire)
    away = state in {Shown.GONE, Shown.PENDING}
    gpus = rows.gpus.get(node.id, [])
    models = [] if away else [_line(node.id, m, wire) for m in rows.models.get(node.id, ())]
    hottest = max((g.temperature for g in gpus if g.temperature is not None), default=None)
    return NodeCard(
        node.id,
        node.name,
        state,
        node.reason,
        gpus,
        models,
        sum(m.in_flight for m in models),
        round(100 * node.cpu_usage),
        node.memory_used,
        node.memory_budget,
        node.disk_free,
        node.beat_at,
        health.node_level(state, models, hottest, node.disk_free),
    )


def _line(node: str, model: ModelRow, wire: Wire) -> ModelLine:
    place = f"{node}/{model.name}"
    breaker = wire.breakers.get(place)
    in_flight = wire.loads.get(place, 0)
    percent = round(100 * model.progress)
    state = str(breaker.state) if breaker else ""
    return ModelLine(model.name, model.state, percent, model.slots, in_flight, model.reason, state)


def _models(nodes: list[NodeCard], wire: Wire, each: Mapping[str, figures.Sums]) -> list[ModelFigures]:
    """Every model that a node has or somebody waits for; those in need come first."""
    offers: dict[str, list[tuple[NodeCard, ModelLine]]] = {name: [] for name, n in wire.waiting.items() if n}
    for node in nodes:
        for line in node.models:
            offers.setdefault(line.name, []).append((node, line))
    found = []
    for name, places in offers.items():
        ready = [
            line for node, line in places if node.state == Shown.ONLINE and line.state == ModelState.READY
        ]
        of = each.get(name, figures.Sums())
        found.append(
            ModelFigures(
                name,
                len(ready),
                len(places),
                sum(line.slots for line in ready),
                sum(line.in_flight for _, line in places),
                wire.waiting.get(name, 0),
                _rate(of.requests, wire),
                _rate(of.errors, wire),
                _rate(of.completion_tokens, wire),
                figures.quantile(of.first_tokens, 0.5),
                figures.quantile(of.first_tokens, 0.95),
            )
        )
    found.sort(key=lambda m: (-m.waiting, -m.requests_per_s, not m.nodes_ready, m.name))
    return found


def _with_tokens(job: JobLine, tokens: _Tokens) -> JobLine:
    so_far = tokens(job.id)
    return job if so_far is None else msgspec.structs.replace(job, tokens=so_far)
