"""Memory that a training step frees and the next one needs again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEEP = 2**30  # blocks as large as this come from the heap, and as much stays there
_USUAL = 2**25  # where glibc's own thresholds end up in a process that frees large blocks


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """For a while, the C library keeps what is freed for the next step, rather than give it back to the system.

    A step on a CPU makes and frees the same gigabytes each time. Given back, every page of them has to be asked for and
    cleared again.

    Yields:
        Whether there is such a library (glibc, so on most Linux systems). Elsewhere nothing happens.
    """
    library = _glibc()
    if library is None:
        yield False
        return
    library.mallopt(_MMAP_THRESHOLD, _KEEP)
    library.mallopt(_TRIM_THRESHOLD, _KEEP)
    try:
        yield True
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL)
        library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    has_all = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"))
    return library if has_all else None
