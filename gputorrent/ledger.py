"""Asking the database from the event loop: in threads of their own, and for a bounded time.

A database that is down says so; one that is frozen, or behind a network that drops packets, says nothing.
Whoever asks is told after `ANSWER_SECONDS` in both cases. The thread stays with its call until the database
answers or the connection breaks, so these threads are kept apart from those that anything else needs.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from django.db import OperationalError, close_old_connections

ANSWER_SECONDS = 2.0
"""How long one call may take before the request behind it is refused with 503."""

_THREADS = 8
_MOST_UNDER_WAY = 256

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ledger")
_under_way: set[Future[Any]] = set()


class LedgerTimeout(OperationalError):
    """The database did not answer in time. What was asked may still be done."""


async def ask(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` returns, with a database connection of its thread. Raises `LedgerTimeout`, and what the
    call raises."""
    return await within(ANSWER_SECONDS, call, *args, **kwargs)


async def within(seconds: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `ask`, for so many seconds."""
    if len(_under_way) >= _MOST_UNDER_WAY:
        raise LedgerTimeout("too many calls wait for the database already")
    context = contextvars.copy_context()
    future = _threads.submit(context.run, _connected, call, args, kwargs)
    _under_way.add(future)
    future.add_done_callback(_under_way.discard)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise LedgerTimeout(f"the database did not answer within {seconds:g} s") from None


def _connected(call: Callable[..., T], args: Any, kwargs: Any) -> T:
    close_old_connections()  # one that broke is opened anew
    try:
        return call(*args, **kwargs)
    finally:
        close_old_connections()
