"""The interface between a training and whatever displays its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Listener:
    """Receives a run's messages and progress; this one shows nothing."""

    def say(self, message: str) -> None:
        """Something good to know."""

    def note(self, message: str) -> None:
        """Something about the result that whoever reads a log has to know too."""

    def warn(self, message: str) -> None:
        """Something that is wrong, though the run goes on."""

    @contextmanager
    def work(self, name: str, total: float | None, unit: str) -> Iterator[Callable[[float, str], None]]:
        """Around a piece of work; what it gives is called with how much more is done, and a remark."""
        yield lambda more, remark: None
