from __future__ import annotations

import pytest
import redis


@pytest.fixture(autouse=True)
def _empty_wire(wire: redis.Redis) -> None:
    """Every test here may touch Redis."""
