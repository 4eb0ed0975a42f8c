"""`manage.py jobworker`: serves the django-rq queues, and sets the clock for the sweeps."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import threading
import time
from types import FrameType
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.worker import DequeueStrategy
from rq.worker_registration import register

from gputorrent.redis import blocking
from jobs import tasks

log = logging.getLogger("jobs.jobworker")

_TICK_SECONDS = 1.0
_ALIVE_SECONDS = 10
_PAUSE_SECONDS = 1.0
_NICE = 5


class TidyWorker(SimpleWorker):
    """Runs tasks in this process (a fork for each would cost 35 ms) and drops broken database connections."""

    max_connection_wait_time = 2.0  # RQ's own pauses grow to a minute

    def __init__(self) -> None:
        # A connection of its own, since it blocks on it. Half the worker's time to live bounds the wait.
        connection = redis.Redis.from_url(settings.REDIS_URL, client_name="gputorrent-jobworker")
        queues = [
            Queue(
                name,
                connection=connection,
                # django-rq's own command would use pickle here, whatever the queues' settings say.
                serializer=JSONSerializer,
            )
            for name in tasks.QUEUES
        ]
        super().__init__(queues, connection=connection, serializer=JSONSerializer, worker_ttl=30)
        self.told_to_stop = False

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        close_old_connections()
        try:
            return super().perform_job(*args, **kwargs)
        finally:
            close_old_connections()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.told_to_stop = True
        super().request_stop(signum, frame)

    def subscribe(self) -> None:
        """No orders by publish/subscribe: none of them fits this worker, and the thread would outlive it."""

    def say_alive(self) -> None:
        """Renew the sign of life, from another thread; and be listed again if Redis was emptied."""
        client = blocking()
        client.set(tasks.worker_key(self.name), "1", ex=_ALIVE_SECONDS)
        if self.birth_date and not client.sismember(self.redis_workers_keys, self.key):
            with client.pipeline() as pipe:
                pipe.hset(self.key, mapping=self.serialize())
                register(self, pipe)
                pipe.execute()


class Command(BaseCommand):
    help = "Serve the queues `routing` and `maintenance` (JSON only), and run the periodic sweeps."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--burst", action="store_true", help="stop when the queues are empty")

    def handle(self, *args: Any, burst: bool, **options: Any) -> None:
        if burst:
            worker = TidyWorker()
            worker.say_alive()
            worker.work(burst=True, logging_level="WARNING")
        else:
            _let_others_first()
            Service().run()


def _let_others_first() -> None:
    """Nobody waits for a sweep or a batch as for an answer: where the processor is short, the web process and
    Redis are to have it. Threads that are started later are as this one."""
    with contextlib.suppress(OSError):  # not permitted; then it is as before
        os.nice(_NICE)


class Service:
    """Workers one after another: RQ's ends when Redis fails it at the wrong moment."""

    def __init__(self) -> None:
        self._worker: TidyWorker | None = None

    def run(self) -> None:
        """Returns when told to stop by a signal."""
        threading.Thread(target=self._tick_for_ever, daemon=True, name="sweep-clock").start()
        try:
            while not self._stopped:
                try:
                    self._worker = TidyWorker()
                    self._worker.say_alive()
                    self._worker.work(logging_level="WARNING", dequeue_strategy=DequeueStrategy.ROUND_ROBIN)
                except redis.RedisError as e:
                    log.warning("redis unavailable error=%s", type(e).__name__)
                if not self._stopped:
                    time.sleep(_PAUSE_SECONDS)
        except StopRequested:  # by a signal in between; the handlers of the last worker are still there
            pass

    @property
    def _stopped(self) -> bool:
        return self._worker is not None and self._worker.told_to_stop

    def _tick_for_ever(self) -> None:
        while True:
            time.sleep(min(_TICK_SECONDS, settings.SWEEP_SECONDS))
            try:
                if self._worker is not None:
                    self._worker.say_alive()
                tasks.enqueue_periodic()
                tasks.enqueue_due()
            except redis.RedisError as e:
                log.warning("redis unavailable error=%s", type(e).__name__)
            except Exception:  # the clock must not stop
                log.exception("tick failed")
