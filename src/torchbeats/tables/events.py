"""Rows of a timeline → events: for each class the stretches where it goes on, over short gaps, and how sure that is."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchbeats.audio import Floats
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.errors import SettingsError
from torchbeats.patches import SAMPLE_RATE
from torchbeats.protocol import Model
from torchbeats.tagging import Tags

TOLERANCE = 0.5 / SAMPLE_RATE  # seconds that rounding may put between rows that join


def events(rows: Iterable[Tags], min_gap: float = 0.0, min_length: float = 0.0) -> Iterator[Annotation]:
    """Merge rows into events, lazily.

    A row belongs to an event of each label that it has, so the rows' threshold decides: `torchbeats.tag` takes one,
    and `class_thresholds` with `tagging.tags` one for each class. Rows of one path in the order of time are one
    recording; events never go on from one recording to the next.

    Args:
        rows: of timelines, recording by recording. They may overlap, and some may be missing.
        min_gap: events of a class with less than so many seconds between them are one.
        min_length: shorter events are dropped, after that.

    Yields:
        By recording, in the order of their starts. ``peak`` is the highest probability of the event's rows, ``mean``
        the mean over them by their lengths; rows of a gap do not count.

    Raises:
        SettingsError: a gap or a length that is negative or no number.
    """
    check_events(min_gap, min_length)
    recording: _Recording | None = None
    for row in rows:
        if recording is not None and not recording.has(row):
            yield from recording.remaining()
            recording = None
        if recording is None:
            recording = _Recording(row.path, min_gap, min_length)
        yield from recording.add(row)
    if recording is not None:
        yield from recording.remaining()


def check_events(min_gap: float, min_length: float) -> None:
    """Raise a `SettingsError` where no events can be made so."""
    for name, value in (("gap", min_gap), ("length", min_length)):
        if not 0 <= value < math.inf:
            raise SettingsError(f"The smallest {name} is a number of seconds, 0 or more, not {value}.")


def class_thresholds(model: Model, names: Sequence[str], default: float) -> tuple[Floats, list[str]]:
    """The threshold of each class that a model was fitted with, ``(classes,)``; and the classes that have none.

    Args:
        model: as `torchbeats fit` makes them, or another.
        names: of its classes.
        default: for classes without one.
    """
    stored = getattr(model.cfg, "thresholds", None)
    values = list(stored) if isinstance(stored, (list, tuple)) and len(stored) == len(names) else [None] * len(names)
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    return np.array([default if value is None else value for value in values], np.float32), missing


@dataclass
class _Event:
    """An event that may go on."""

    start: float
    end: float
    peak: float
    total: float
    seconds: float


class _Recording:
    """The events of one recording: those that may go on, and those that wait for earlier ones."""

    def __init__(self, path: str, min_gap: float, min_length: float) -> None:
        self.path, self.min_gap, self.min_length, self.last = path, min_gap, min_length, -math.inf
        self.open_events: dict[str, _Event] = {}
        self.pending: list[tuple[float, float, str, Annotation]] = []

    def has(self, row: Tags) -> bool:
        """Whether a row can be of this recording."""
        return row.path == self.path and row.start >= self.last

    def add(self, row: Tags) -> Iterator[Annotation]:
        """Take the next row; what is certain by now."""
        self.last = row.start
        for label in [label for label, event in self.open_events.items() if not self._joins(event, row.start)]:
            self._end(label)
        for label, probability in row.labels:
            seconds = row.end - row.start
            if label in self.open_events:
                event = self.open_events[label]
                event.end, event.peak = max(event.end, row.end), max(event.peak, probability)
                event.total, event.seconds = event.total + seconds * probability, event.seconds + seconds
            else:
                self.open_events[label] = _Event(row.start, row.end, probability, seconds * probability, seconds)
        first = min((event.start for event in self.open_events.values()), default=math.inf)
        while self.pending and self.pending[0][0] <= first:
            yield heapq.heappop(self.pending)[-1]

    def remaining(self) -> Iterator[Annotation]:
        """What is left at the recording's end."""
        for label in list(self.open_events):
            self._end(label)
        while self.pending:
            yield heapq.heappop(self.pending)[-1]

    def _joins(self, event: _Event, start: float) -> bool:
        gap = start - event.end
        return gap <= TOLERANCE or gap < self.min_gap - TOLERANCE

    def _end(self, label: str) -> None:
        event = self.open_events.pop(label)
        if event.end - event.start < self.min_length - TOLERANCE:
            return
        mean = event.total / event.seconds if event.seconds else event.peak
        done = Annotation(self.path, event.start, event.end, label, peak=event.peak, mean=mean)
        heapq.heappush(self.pending, (event.start, event.end, label, done))
