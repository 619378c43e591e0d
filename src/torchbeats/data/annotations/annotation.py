"""What every format of annotations says: a stretch of a recording, and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias


class Annotation(NamedTuple):
    """A labelled stretch of a recording.

    Attributes:
        path: of the recording.
        start: in seconds from the recording's beginning.
        end: in seconds; None for the recording's end; equal to ``start`` for a point.
        label: what is in it.
        low: lower edge of its box, in Hz; None where not given.
        high: upper edge, likewise.
        peak: highest score of a detector; None where not given.
        mean: mean score over the stretch, likewise.
    """

    path: str
    start: float
    end: float | None
    label: str
    low: float | None = None
    high: float | None = None
    peak: float | None = None
    mean: float | None = None


AnnotationWriter: TypeAlias = Callable[[Iterable[Annotation]], Iterator[str]]


def seconds(value: float | None, digits: int = 6) -> str:
    """A time, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"
