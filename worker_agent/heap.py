"""A heap that keeps what it has had, for processes through which the same amounts pass all day.

glibc gives the top of its heap back to the kernel once 128 KiB are free there, and fetches every block of
that size anew (both bounds grow with what is freed, up to those set here: mallopt(3)). What comes back is
page after page, each a fault: a tenth of what a token costs where tokens come a hundred at a time.
"""

from __future__ import annotations

import ctypes
from typing import Final

_KEPT_BYTES: Final = 64 << 20  # of free memory, at most
_IN_HEAP_BYTES: Final = 32 << 20  # the most that glibc takes
_AHEAD_BYTES: Final = 1 << 20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep() -> bool:
    """Have this process's heap keep what it has had. False where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    told = [
        mallopt(_M_MMAP_THRESHOLD, _IN_HEAP_BYTES),
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES),
        mallopt(_M_TOP_PAD, _AHEAD_BYTES),
    ]
    return all(told)


def environment() -> dict[str, str]:
    """The same for a program that is yet to be started. It means nothing to one with another allocator."""
    return {
        "MALLOC_MMAP_THRESHOLD_": str(_IN_HEAP_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
        "MALLOC_TOP_PAD_": str(_AHEAD_BYTES),
    }
