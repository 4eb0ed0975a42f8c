"""`manage.py jobworker`: serves the django-rq queues, and sets the clock for the sweeps."""

from __future__ import annotations

import argparse
import logging
import threading
from typing import Any

import django_rq
import redis
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from jobs import tasks

log = logging.getLogger("jobs.jobworker")


class TidyWorker(SimpleWorker):
    """Runs tasks in this process (a fork for each would cost 35 ms) and drops broken database connections."""

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        close_old_connections()
        try:
            return super().perform_job(*args, **kwargs)
        finally:
            close_old_connections()


class Command(BaseCommand):
    help = "Serve the queues `routing` and `maintenance` (JSON only), and run the periodic sweeps."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--burst", action="store_true", help="stop when the queues are empty")

    def handle(self, *args: Any, burst: bool, **options: Any) -> None:
        stop = threading.Event()
        clock = threading.Thread(target=_tick_until, args=(stop,), daemon=True, name="sweep-clock")
        if not burst:
            clock.start()
        try:
            # django-rq's own command would use pickle here, whatever the queues' settings say.
            queues = [django_rq.get_queue(name) for name in ("routing", "maintenance")]
            worker = TidyWorker(queues, connection=queues[0].connection, serializer=JSONSerializer)
            worker.work(burst=burst, with_scheduler=not burst, logging_level="WARNING")
        finally:
            stop.set()


def _tick_until(stop: threading.Event) -> None:
    while not stop.wait(settings.SWEEP_SECONDS):
        try:
            tasks.enqueue_sweep()
        except redis.RedisError as e:
            log.warning("redis unavailable error=%s", type(e).__name__)
