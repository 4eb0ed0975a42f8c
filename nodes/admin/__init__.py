"""Nodes in the admin: hosts, what they carry, what happened to them, and the tokens that let them in."""

from nodes.admin import carried, history, hosts, tokens  # noqa: F401 - each registers its rows
from nodes.backoffice.rows import ReadOnly, audit

__all__ = ["ReadOnly", "audit"]
