"""Growing, jittered pauses between attempts at something that is away."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses that double from `first` to `most` seconds, each shortened at random by up to half.

    The jitter keeps a hundred agents from calling a returning coordinator in the same instant.
    """

    def __init__(
        self, first: float = 0.25, most: float = 15.0, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._first, self._most, self._chance = first, most, chance
        self._next = first

    def pause(self) -> float:
        """Seconds to wait now; the next pause will be longer."""
        pause = self._next * (1 - self._chance() / 2)
        self._next = min(self._most, self._next * 2)
        return pause

    def reset(self) -> None:
        """It answered: start small again."""
        self._next = self._first
