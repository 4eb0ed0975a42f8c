"""The settings, for what reads some with every request: `from gputorrent.chosen import settings`.

Django's own object runs a function in Python for each name that is read, which a busy process pays for a
dozen times a request. It keeps what it has found among its attributes, and drops it when a setting changes.
This one has the same attributes (not a copy), so it is never behind, and reads them as those of any object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.conf import settings as _django

if TYPE_CHECKING:
    from django.conf import LazySettings


class _Chosen:
    def __getattr__(self, name: str) -> Any:
        """Called for what was not read yet. Raises `AttributeError` for a name that is no setting."""
        return getattr(_django, name)


_chosen = _Chosen()
_chosen.__dict__ = vars(_django)
settings = cast("LazySettings", _chosen)
