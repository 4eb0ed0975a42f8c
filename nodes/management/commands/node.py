"""`manage.py node`: list nodes and steer them from the command line."""

from __future__ import annotations

import argparse
import getpass
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from nodes import registry, steering
from nodes.models import Node


class Command(BaseCommand):
    help = "List nodes; approve, drain, resume or revoke one; ask one to load, unload, pin or unpin a model."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list")
        for verb in steering.NODE_VERBS:
            verbs.add_parser(verb).add_argument("node", help="name or id")
        for verb in steering.MODEL_VERBS:
            with_model = verbs.add_parser(verb)
            with_model.add_argument("node", help="name or id")
            with_model.add_argument("model")

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        if verb == "list":
            self._list()
            return
        by = _who()
        try:
            node = steering.find(options["node"])
            if verb in steering.NODE_VERBS:
                changed = steering.NODE_VERBS[verb](node, by)
                self.stdout.write(f"{node.name} is {node.state}" + ("" if changed else ": nothing to do"))
            else:
                steering.MODEL_VERBS[verb](node, options["model"], by)
                self.stdout.write(f"{node.name} was asked to {verb} {options['model']}")
        except registry.Refusal as e:
            raise CommandError(f"{e}: see `manage.py node list`") from None
        except redis.RedisError as e:
            raise CommandError(f"Redis is away ({type(e).__name__}): check REDIS_URL") from None

    def _list(self) -> None:
        for node in Node.objects.prefetch_related("models", "gpus"):
            beat = (
                f"{(timezone.now() - node.last_beat_at).total_seconds():.0f} s ago"
                if node.last_beat_at
                else "-"
            )
            models = ", ".join(f"{m.name} ({m.state})" for m in node.models.all()) or "-"
            gpus = ", ".join(g.name for g in node.gpus.all()) or "CPU"
            self.stdout.write(f"{node.name}  {node.pk}  {node.state}  beat {beat}  {gpus}  {models}")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "the command line"
