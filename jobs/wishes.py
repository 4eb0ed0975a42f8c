"""Asking nodes to load models, at most once in a few seconds however many requests wait for one."""

from __future__ import annotations

import logging
import time
from typing import Final

from jobs.effects import Effects
from jobs.mailbox import Mailbox
from worker_agent.contract import Load

log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS: Final = 3.0


class LoadWishes:
    """What one web process has asked for."""

    def __init__(self, mailbox: Mailbox, effect: Effects) -> None:
        self._mailbox, self._effect = mailbox, effect
        self._asked: dict[tuple[str, str], float] = {}

    def ask(self, node: str, model: str) -> None:
        """Tell a node to load a model, unless it was told a moment ago."""
        now = time.monotonic()
        if now - self._asked.get((node, model), 0.0) > _ASK_AGAIN_SECONDS:
            self._asked[node, model] = now
            log.info("node=%s asked to load model=%s", node, model)
            self._effect(self._mailbox.tell(node, Load(model)))
