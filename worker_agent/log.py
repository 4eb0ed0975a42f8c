"""One line per event: a few words, then ``key=value``; or JSON. Never a body, a token or a secret."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


def event(logger: logging.Logger, level: int, words: str, **fields: Any) -> None:
    """Log `words` with `fields` (those that are None are left out)."""
    if logger.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        logger.log(level, "%s", words, extra={"fields": known})


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    quoted = any(character in text for character in ' "=\n') or not text
    return json.dumps(text, ensure_ascii=False) if quoted else text


class LineFormatter(logging.Formatter):
    """``2026-11-23T12:00:00Z INFO model ready model=smol seconds=41``"""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ")
        fields = getattr(record, "fields", {})
        tail = "".join(f" {key}={_plain(value)}" for key, value in fields.items())
        line = f"{when} {record.levelname:<7} {record.getMessage()}{tail}"
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """The same as one JSON object a line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "level": record.levelname.lower()}
        line["event"] = record.getMessage()
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up(*, as_json: bool, level: int = logging.INFO) -> None:
    """Send the agent's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("worker_agent").setLevel(level)
