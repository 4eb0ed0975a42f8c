"""A client whose environment is not there is skipped, or fails where all must be there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance import environments


@pytest.fixture(scope="session")
def needs() -> Callable[[str], None]:
    """Call it with a client's name before anything is started for it."""
    said = {name: environments.missing(name) for name in (*environments.PYTHONS, environments.NODE)}

    def check(name: str) -> None:
        if why := said[name]:
            may_be_missing = name == environments.NODE and environments.no_node()
            if environments.required() and not may_be_missing:
                pytest.fail(why)
            pytest.skip(why)

    return check
