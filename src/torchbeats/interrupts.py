"""What Ctrl-C and SIGTERM do to the command ``torchbeats``; a program that imports the package is left alone.

While the package is being imported, which takes seconds, a Ctrl-C ends the command at once and without a traceback.
In the work itself it is an exception, so that what is done can be kept; a second one ends the command at once, and so
does one before or behind all work.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Any

from torchbeats.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_the_command() -> bool:
    """Whether this process was started as ``torchbeats`` or ``python -m torchbeats``."""
    started = sys.orig_argv
    name = os.path.basename(sys.argv[0] if sys.argv else "")
    by_module = any(pair == ("-m", "torchbeats") for pair in pairwise(started))
    return name.removesuffix(".exe") == "torchbeats" or (name in ("-m", "__main__.py") and by_module)


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM raises `Stopped` in the main thread, and the second ends the process."""
    process, handlers = os.getpid(), dict[signal.Signals, Any]()

    def stop(number: int, frame: FrameType | None) -> None:
        for mine in handlers:  # whichever of them is the second
            signal.signal(mine, signal.SIG_DFL)
        if _postponed is not None and os.getpid() == process:
            _postponed.append(number)
            return
        if os.getpid() != process:  # a child that was forked: the parent does the talking
            os.kill(os.getpid(), number)
            return
        raise Stopped(number)

    for number in SIGNALS:
        # Other programs may have it ignored, as nohup does, and for a program's own handler there is a reason, too.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            with suppress(ValueError):  # not in the main thread
                handlers[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # What the command still does is to end, of which Python would print tracebacks.
            ending = handler is signal.default_int_handler and is_the_command()
            signal.signal(number, signal.SIG_DFL if ending else handler)


_postponed: list[int] | None = None  # signals that came while they were not to be raised


@contextmanager
def postponed() -> Iterator[None]:
    """Inside, a signal waits for the end of the block.

    An exception that is raised between a lock's acquisition and its ``with`` would leave the lock held for good, and
    the threads that share it, and whoever waits for those, waiting.
    """
    global _postponed
    signals: list[int] = []
    _postponed = signals
    try:
        yield
    finally:
        _postponed = None
    if signals:
        raise Stopped(signals[0])


if is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
