"""What the C library does with the memory that a step of a training gives back."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress

# Of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_ON_THE_HEAP = 32 * 2**20  # more it does not take
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep for the next step what a step gives back; whether it does.

    By itself it returns most of that to the system, which clears each page anew when the next step asks for it: a sixth
    of a pre-training step of the built-in model's size. A process holds no more than its largest step needs. Whoever
    has told glibc what to do is left alone, and so are other C libraries.
    """
    told = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if told or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    with suppress(AttributeError, OSError):
        adjust = ctypes.CDLL(None).mallopt
        return bool(adjust(MMAP_THRESHOLD, LARGEST_ON_THE_HEAP) and adjust(TRIM_THRESHOLD, NEVER))
    return False
