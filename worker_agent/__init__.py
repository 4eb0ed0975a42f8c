"""The agent that runs on a GPU host: ``python -m worker_agent``."""

__version__ = "0.1.0"
