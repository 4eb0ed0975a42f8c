"""The time in which there is no batch: a turn that finds nothing to do, each second, was most of what an idle
jobworker cost. A key in Redis says so; without it there is a turn each second, so nothing is lost with it.
"""

from __future__ import annotations

import logging
from typing import Final

import redis
from django.conf import settings

from gputorrent.redis import blocking
from jobs.models import BATCH_ENDS, Batch

log = logging.getLogger(__name__)

_LULL: Final = "gt:batches:lull"


def known() -> bool:
    """Whether it was found a moment ago, and no batch was made since. Raises `redis.RedisError`."""
    return bool(blocking().exists(_LULL))


def found() -> bool:
    """Whether no batch is open. Then that is known until one is made, for as long as between two sweeps at
    most. Raises `redis.RedisError`, and what the database raises."""
    # Said before it is looked, so that a batch that is made meanwhile takes it back.
    blocking().set(_LULL, "1", px=max(1, int(settings.SWEEP_SECONDS * 1000)))
    if Batch.objects.exclude(status__in=BATCH_ENDS).exists():
        blocking().delete(_LULL)
        return False
    return True


def over() -> None:
    """A batch was made. What Redis raises is logged: the next look is not far."""
    try:
        blocking().delete(_LULL)
    except redis.RedisError as e:
        log.warning("no turn asked for error=%s", type(e).__name__)
