"""How log lines look: a message that ends in key=value pairs, or one JSON object (GPUTORRENT_LOG_JSON=1).

Both carry the id of the request that the line is about. Nobody logs a prompt, a key or a query string.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from gputorrent import tracing


def _when(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _quoted(value: str) -> str:
    return value if value.isprintable() and not set(value) & set(' "=') else json.dumps(value)


class Lines(logging.Formatter):
    """``TIME LEVEL LOGGER MESSAGE key=value ... request=ID``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, then the traceback if there is one. What came from outside cannot begin a new line."""
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        line = f"{_when(record)} {record.levelname} {record.name} {message}"
        fields: dict[str, Any] = getattr(record, "fields", {})
        for name, value in fields.items():
            line += f" {name}={_quoted(str(value))}"
        if "request" not in fields and (request := tracing.request_id()):
            line += f" request={request}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class Objects(logging.Formatter):
    """The same as one JSON object a line: time, level, logger, message, request, and the pairs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := tracing.request_id():
            line["request"] = request
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
