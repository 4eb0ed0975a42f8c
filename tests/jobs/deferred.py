"""Asynchronous jobs and a node for them, with the loop hidden: tests of these verbs block."""

from __future__ import annotations

import datetime
from typing import Any

import redis
from asgiref.sync import async_to_sync
from django.utils import timezone

from gputorrent.redis import Pipe, asynchronous
from jobs import asynchronous as verbs
from jobs import heals, sweeping
from jobs.board import Board
from jobs.models import Job
from nodes.models import Node
from tests.jobs.desk import request
from tests.nodes.agents import enrol, model
from worker_agent.contract import Failed, Outcome, Report, Work, decode_work, inbox_key, lease_key


def a_node(wire: redis.Redis, name: str = "box", **changes: Any) -> Node:
    """A node that has enrolled and lives, with one slot for model `m`."""
    node, _ = enrol(name=name, **{"models": [model(slots=1)], **changes})
    wire.set(lease_key(node.pk), "1")
    return node


def submit(**changes: Any) -> Job:
    return verbs.submit(request(stream=False, **changes))


def route(job: Job) -> str:
    return async_to_sync(verbs.route)(job.id)


def inbox(wire, node: Node) -> list[Work]:
    entries = wire.xrange(inbox_key(node.pk))
    wire.delete(inbox_key(node.pk))
    return [decode_work(fields[b"m"]) for _, fields in entries]


def healed(wire) -> dict[str, int]:
    """How often something was put right, by kind."""
    return {k.decode(): int(v) for k, v in wire.hgetall(heals.KEY).items()}


def on_board(verb: str, *arguments):
    async def ask():
        client = asynchronous()
        try:
            return await getattr(Board(Pipe(client)), verb)(*arguments)
        finally:
            await client.aclose()

    return async_to_sync(ask)()


def report(node: Node, item: Work, reply: Any = None, **changes: Any) -> None:
    """What a node says of an attempt: that it began, or how it ended."""
    fields = {"incarnation": 1, "job": item.job, "attempt": item.attempt, "lease": item.lease}
    message = Report(**{**fields, "reply": reply, **changes})

    async def send():
        client = asynchronous()
        try:
            await verbs.report(node, message, Board(Pipe(client)))
        finally:
            await client.aclose()

    async_to_sync(send)()


def failed(item: Work, outcome: Outcome = Outcome.ENGINE_DIED) -> Failed:
    return Failed(item.job, item.attempt, item.lease, 0, outcome, "it died")


def sweep() -> dict[str, int]:
    return async_to_sync(sweeping.sweep)()


def queued(wire) -> int:
    return wire.llen("rq:queue:routing") + wire.zcard("rq:scheduled:routing")


def ago(**much) -> datetime.datetime:
    return timezone.now() - datetime.timedelta(**much)


def age(wire, seconds: int = 3600) -> None:
    """Make every slot on the board look as if it had been taken long ago."""
    for key in wire.keys("gt:board:slots:*"):
        for ref, entry in wire.hgetall(key).items():
            *rest, placed_at = entry.decode().split(" ")
            wire.hset(key, ref, " ".join([*rest, str(int(placed_at) - seconds * 1000)]))
