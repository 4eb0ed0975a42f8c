from __future__ import annotations

import pytest
import redis


@pytest.fixture(autouse=True)
def _stage(wire: redis.Redis, quick: None) -> None:
    """Every test here may touch Redis."""
