"""Samples of the whole cluster: taken every ten seconds, added up to minutes after an hour and to five
minutes after a day, gone after `SAMPLE_TTL_SECONDS`. Run by the jobworker; safe to run twice at once.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Final

import redis
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from dashboard import feed, recent
from dashboard.figures import sums
from dashboard.models import Sample
from gputorrent.redis import Pipe, piped
from jobs.board import Board
from jobs.metrics import STEP_SECONDS, Series
from nodes.view import Snapshot

EVERY: Final = 10
"""Seconds: two windows of the counts."""
_BACK: Final = 10
"""So many samples are made up for when nobody took them; Redis keeps the windows for two minutes."""
STAGES: Final = ((10, 3600, 60), (60, 86400, 300))
"""Spans, the age from which they are added up, and the span that becomes of them. Seconds."""
_MOST: Final = 5000


class _Taken(Exception):
    """Somebody else adds the same rows up."""


# -- taking --------------------------------------------------------------------------------------------


def sample() -> int:
    """Take what is missing of the samples of the last two minutes, and thin the old ones. Returns how many
    were taken. Raises `redis.RedisError`."""
    taken = async_to_sync(_take)()
    thin()
    return taken


async def _take() -> int:
    async with piped() as pipe:
        last = int(await recent.now(pipe)) // EVERY - 1
        begun = [_moment(n * EVERY) for n in range(last - _BACK + 1, last + 1)]
        known = {row.at async for row in Sample.objects.filter(span=EVERY, at__gte=begun[0]).only("at")}
        missing = [at for at in begun if at not in known]
        rows = [await _counted(pipe, at) for at in missing]
        if rows and rows[-1].at == begun[-1]:  # what is so now says nothing of a minute ago
            await _note_levels(pipe, rows[-1])
        await Sample.objects.abulk_create(rows, ignore_conflicts=True)
        return len(rows)


async def _counted(pipe: Pipe, at: datetime.datetime) -> Sample:
    first = int(at.timestamp()) // STEP_SECONDS
    windows = await asyncio.gather(
        *(recent.window(pipe, n) for n in range(first, first + EVERY // STEP_SECONDS))
    )
    counts: Counter[Series] = Counter()
    for window in windows:
        counts.update(window)
    whole, _ = sums(counts)
    return Sample(
        at=at,
        span=EVERY,
        covered=EVERY,
        requests=whole.requests,
        errors=whole.errors,
        prompt_tokens=whole.prompt_tokens,
        completion_tokens=whole.completion_tokens,
        first_tokens=dict(whole.first_tokens),
    )


async def _note_levels(pipe: Pipe, row: Sample) -> None:
    snapshot, board = Snapshot(), Board(pipe)
    await snapshot.refresh(pipe)
    (waiting, _), look = await asyncio.gather(board.depths([]), board.look())
    row.waiting, row.running = waiting, sum(look.loads.values())
    row.nodes = sum(n.takes_work and n.id in snapshot.leased for n in snapshot.nodes.values())
    try:
        await feed.note_breakers(pipe, look.breakers.values())
    except redis.RedisError:
        return  # whoever looks next notes them


def _moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


# -- growing old ---------------------------------------------------------------------------------------


def thin() -> int:
    """Add up what is old enough, drop what is too old. Returns how many rows there are fewer."""
    now = timezone.now()
    fewer = sum(_add_up(now, *stage) for stage in STAGES)
    retention = datetime.timedelta(seconds=settings.SAMPLE_TTL_SECONDS)
    return fewer + Sample.objects.filter(at__lt=now - retention).delete()[0]


def _add_up(now: datetime.datetime, span: int, age: int, into: int) -> int:
    before = _moment(int(now.timestamp() - age) // into * into)
    rows = list(Sample.objects.filter(span=span, at__lt=before).order_by("at")[:_MOST])
    groups = [list(group) for _, group in groupby(rows, lambda r: int(r.at.timestamp()) // into)]
    if len(rows) == _MOST:
        groups.pop()  # the rest of it is not here
    if not groups:
        return 0
    gone = [row.pk for group in groups for row in group]
    try:
        with transaction.atomic():
            deleted, _ = Sample.objects.filter(pk__in=gone).delete()
            if deleted != len(gone):
                raise _Taken
            Sample.objects.bulk_create([added(group, into) for group in groups], ignore_conflicts=True)
    except _Taken:
        return 0
    return len(gone) - len(groups)


def added(rows: list[Sample], span: int) -> Sample:
    """One sample for all of these, which begin in the same `span` seconds. Pure."""
    histogram: Counter[str] = Counter()
    for row in rows:
        histogram.update(row.first_tokens)
    return Sample(
        at=_moment(int(rows[0].at.timestamp()) // span * span),
        span=span,
        covered=sum(r.covered for r in rows),
        requests=sum(r.requests for r in rows),
        errors=sum(r.errors for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
        first_tokens=dict(histogram),
        waiting=_mean(r.waiting for r in rows),
        running=_mean(r.running for r in rows),
        nodes=_mean(r.nodes for r in rows),
    )


def _mean(levels: Iterable[float | None]) -> float | None:
    seen = [level for level in levels if level is not None]
    return sum(seen) / len(seen) if seen else None
