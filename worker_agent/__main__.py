"""``python -m worker_agent``: see --help."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

from worker_agent import agent, heap, log, settings
from worker_agent.errors import AgentError


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """On uvloop where it is installed (vLLM brings it): every token passes through this loop."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def main() -> int:
    """0 after an orderly stop, 1 with one clear line otherwise (2 for wrong options, from argparse)."""
    told = settings.read(sys.argv[1:], os.environ)
    log.set_up(as_json=told.log_json)
    heap.keep()
    try:
        _run(agent.serve(told))
    except AgentError as error:
        print(f"worker_agent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the agent was there to be told
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
