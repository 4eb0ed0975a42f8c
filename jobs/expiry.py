"""What is done with the ledger and the board from time to time: expiry, roll-ups, left-over keys."""

from __future__ import annotations

import datetime

from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from gputorrent.redis import Pipe, piped
from jobs import heals
from jobs.board import Board
from jobs.heals import Heal
from jobs.lifecycle import Move, move
from jobs.models import Job, JobState
from nodes import listing
from nodes.models import Node, NodeState

_PREFIXES = ("gt:board:queue:", "gt:board:turns:")


def expire() -> int:
    """End what has waited for longer than results are kept, and drop old results and old jobs."""
    now = timezone.now()
    expired = 0
    too_old = now - datetime.timedelta(seconds=settings.RESULT_TTL_SECONDS)
    for job in Job.objects.filter(asynchronous=True, state=JobState.PENDING, created_at__lt=too_old)[:1000]:
        expired += move(
            job,
            Move.EXPIRE,
            finished_at=now,
            error_code="expired",
            error_message="no node took it in time",
            request=None,
        )
    Job.objects.filter(finished_at__lt=too_old).exclude(result=None).update(result=None)
    Job.objects.filter(finished_at__lt=now - datetime.timedelta(seconds=settings.JOB_TTL_SECONDS)).delete()
    return expired


async def clear() -> int:
    """Left-over keys of the board and of nodes that have left; returns how much of the board was wrong.

    Raises `redis.RedisError`.
    """
    async with piped() as pipe:
        wrong = await Board(pipe).prune(sorted(await _models_on_board(pipe)))
        await heals.note(pipe, Heal.BOARD, wrong)
        known = await sync_to_async(_known_nodes)()
        if left := [n for n in await listing.read(pipe) if n not in known]:
            await pipe.send("HDEL", listing.KEY, *left)
        return wrong


async def _models_on_board(pipe: Pipe) -> set[str]:
    """Models that have a queue, or had one."""
    models, cursor = set(), b"0"
    while True:
        cursor, keys = await pipe.send("SCAN", cursor, "MATCH", "gt:board:*", "COUNT", 1000)
        for key in map(bytes.decode, keys):
            models |= {key.removeprefix(p) for p in _PREFIXES if key.startswith(p)}
        if int(cursor) == 0:
            return models


def _known_nodes() -> set[str]:
    return set(Node.objects.exclude(state=NodeState.REVOKED).values_list("pk", flat=True))
