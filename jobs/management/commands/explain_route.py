"""`manage.py explain_route`: where a request for a model would go now, and why."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError

from gputorrent.redis import Pipe, asynchronous
from jobs import explanation
from jobs.board import Board, Look
from jobs.candidates import candidates
from jobs.explanation import Explained
from jobs.routing import Hints
from nodes.view import NodeView, Snapshot


class Command(BaseCommand):
    help = (
        "Print every node that offers a model in the order in which routing would ask it, factor by factor."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", required=True)
        parser.add_argument("--tokens", type=int, default=0, help="context the request needs, in tokens")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, model: str, tokens: int, **options: Any) -> None:
        try:
            snapshot, seen = asyncio.run(_look())
        except redis.RedisError as e:
            raise CommandError(f"Redis is away ({type(e).__name__}): check REDIS_URL") from None
        if model not in snapshot.by_model:
            known = ", ".join(sorted(snapshot.by_model)) or "none; are there nodes? See `manage.py node list`"
            raise CommandError(f"no node offers {model!r}. Known models: {known}")
        offered = candidates(snapshot, seen.loads, seen.breakers, model)
        decision, rows = explanation.explain(offered, Hints(max(0, tokens)))
        said = explanation.in_words(decision)
        found = [_figures(row, snapshot.nodes[row.candidate.node], snapshot.leased) for row in rows]
        if options["json"]:
            self.stdout.write(
                json.dumps({"model": model, "tokens": tokens, "decision": said, "nodes": found})
            )
            return
        self.stdout.write(f"{model}: {said}. Score = loaded x free x latency x weight.")
        self._table([{k: _cell(v) for k, v in figures.items()} for figures in found])

    def _table(self, rows: list[dict[str, str]]) -> None:
        heads = {name: name.replace("_", " ") for name in rows[0]}
        wide = {name: max(len(row[name]) for row in [heads, *rows]) for name in heads}
        for row in [heads, *rows]:
            self.stdout.write("  ".join(row[name].ljust(wide[name]) for name in heads).rstrip())


async def _look() -> tuple[Snapshot, Look]:
    client = asynchronous()
    try:
        pipe, snapshot = Pipe(client), Snapshot()
        await snapshot.refresh(pipe)
        return snapshot, await Board(pipe).look()
    finally:
        await client.aclose()


def _figures(row: Explained, node: NodeView, leased: frozenset[str]) -> dict[str, Any]:
    c, s = row.candidate, row.scored
    return {
        "rank": row.rank or None,
        "node": node.name,
        "state": node.state if node.id in leased else f"{node.state}, silent",
        "model": row.match,
        "in_flight": c.in_flight,
        "slots": c.slots,
        "score": round(s.score, 3) if s else None,
        "free": round(s.free, 3) if s else None,
        "latency": round(s.latency, 3) if s else None,
        "weight": round(c.weight, 3),
        "share": round(row.share, 3) if s else None,
        "breaker": c.breaker,
        "ttft_ms": round(c.ttft_ms, 1) or None,
        "context": c.max_model_len or None,
        "weight_from": c.weight_from,
        "note": row.why_not,
    }


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)
