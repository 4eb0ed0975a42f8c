"""What ends an agent on purpose.

AgentError            one clear line for the person who started it; exit code 1
  Preflight           something that must hold before the start does not
(coordinator.py)      Unreachable: try again; Rejected: do not
(engine_client.py)    EngineError: EngineUnreachable, EngineDied
"""

from __future__ import annotations


class AgentError(Exception):
    """The agent cannot go on. The message is one line and says the remedy."""


class Preflight(AgentError):
    """Found before anything was started."""
