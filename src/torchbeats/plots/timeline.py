"""A picture of a recording of any length: its spectrogram above, the labels of its timeline below; constant memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from torchbeats.abstention import Scored
from torchbeats.audio import AudioWarning, Floats
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.inputs import Piece
from torchbeats.data.sounds import blocks
from torchbeats.errors import AudioError
from torchbeats.fbank import HIGH_HZ, LOW_HZ, Fbank, mel
from torchbeats.patches import FRAME_SHIFT, N_MELS, SAMPLE_RATE, frames
from torchbeats.plots.fonts import writable
from torchbeats.tagging import Indices

COLUMNS = (
    1024  # of a summary, at most; a little less than a picture has pixels from left to right, so that none is lost
)
AT_ONCE = 5 * SAMPLE_RATE
LABELS = 12  # in a picture, at most
RANGE_DB = 80.0  # below the loudest, of what is shown
KILOHERTZ = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Summary:
    """A sequence of vectors, however long, as at most ``columns`` of them, of equally many each but for the last.

    Args:
        width: values in a vector.
        join: what makes one column of two: ``np.maximum``, ``np.logaddexp``.
        columns: an even number; there are more than half of it as soon as so many vectors have come.
    """

    def __init__(self, width: int, join: np.ufunc, columns: int = COLUMNS) -> None:
        self.per_column = 1  # vectors in a column
        self._join, self._columns = join, np.empty((columns, width), np.float32)
        self._full, self._in_last = 0, 0  # columns that are full; vectors in the one behind them

    def add(self, vectors: Floats) -> None:
        """Take ``(n, width)`` more."""
        while len(vectors):
            taken, vectors = np.split(vectors, [self.per_column - self._in_last])
            joined = self._join.reduce(taken, axis=0)
            last = self._columns[self._full]
            last[:] = self._join(last, joined) if self._in_last else joined
            self._in_last += len(taken)
            if self._in_last == self.per_column:
                self._full, self._in_last = self._full + 1, 0
            if self._full == len(self._columns):
                self._full, self.per_column = self._full // 2, self.per_column * 2
                self._columns[: self._full] = self._join(self._columns[::2], self._columns[1::2])

    def columns(self) -> Floats:
        """``(columns, width)``."""
        return self._columns[: self._full + (self._in_last > 0)].copy()

    def counts(self) -> Indices:
        """``(columns,)``: the vectors in each."""
        counts = [self.per_column] * self._full + [self._in_last] * (self._in_last > 0)
        return np.array(counts, np.intp)


class Spectrogram:
    """The log-mel spectrogram of a stream of samples; power is averaged over what comes to share a column."""

    def __init__(self) -> None:
        self._fbank, self._sums, self._rest = Fbank(), Summary(N_MELS, np.logaddexp), np.empty(0, np.float32)

    def add(self, samples: Floats) -> None:
        """Take ``(samples,)`` more."""
        for first in range(0, len(samples), AT_ONCE):  # its features take twenty times a sound's memory
            waiting_samples = np.concatenate([self._rest, samples[first : first + AT_ONCE]])
            count = max(0, frames(len(waiting_samples)))
            if count:
                with torch.inference_mode():
                    self._sums.add(self._fbank(torch.from_numpy(waiting_samples)[None])[0].numpy())
            self._rest = waiting_samples[count * FRAME_SHIFT :]

    def read(self, sound: Piece) -> None:
        """Take all of a sound; what is wrong with it has been told when it was computed with."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            with suppress(AudioError):
                for block in blocks(sound):
                    self.add(block)

    @property
    def seconds(self) -> float:
        """Length of a column in seconds."""
        return self._sums.per_column * FRAME_SHIFT / SAMPLE_RATE

    def decibels(self) -> Floats:
        """``(columns, 128)``, where the loudest is 0."""
        power = self._sums.columns() - np.log(np.maximum(self._sums.counts(), 1))[:, np.newaxis]
        return (10 / math.log(10) * (power - power.max(initial=-np.inf))).astype(np.float32)


class Timeline:
    """What a picture needs of one recording.

    Args:
        names: of the classes.
        every: seconds of a row.
    """

    def __init__(self, names: list[str], every: float) -> None:
        self.names, self.every, self.end = names, every, 0.0
        self.spectrogram = Spectrogram()
        self._scores = Summary(len(names), np.maximum)
        self._peaks = np.zeros(len(names), np.float32)  # of the classes that a row has named
        self._events: list[tuple[int, float, float]] = []  # class, start, end

    def add(self, end: float, probabilities: Floats, named: Indices) -> None:
        """Take the next row: where it ends, ``(classes,)`` probabilities, and which classes it names."""
        self.end = end
        self._scores.add(probabilities[np.newaxis])
        self._peaks[named] = np.maximum(self._peaks[named], probabilities[named])

    def observe(self, rows: Iterable[Scored]) -> Iterator[Scored]:
        """Take rows on their way; none of their classes is named."""
        no_classes = np.empty(0, np.intp)
        for row in rows:
            self.add(row.end, row.probabilities, no_classes)
            yield row

    def mark(self, event: Annotation) -> None:
        """Take an event; its class is named."""
        index = self.names.index(event.label)
        self._events.append((index, event.start, event.start if event.end is None else event.end))
        self._peaks[index] = max(self._peaks[index], event.peak or 0.0)

    def shown_classes(self) -> Indices:
        """The classes that a picture shows: of those that rows name the likeliest, by their peaks."""
        order = np.argsort(-self._peaks, kind="stable")[:LABELS]
        return order[self._peaks[order] > 0]

    def draw(self, path: str | os.PathLike[str], title: str) -> None:
        """Write the picture as a PNG."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        shown_classes = self.shown_classes()
        rows = max(1, len(shown_classes))
        figure = Figure(figsize=(12, 4.2 + 0.32 * rows), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.32 * rows])
        self._draw_spectrogram(figure, above)
        self._draw_labels(figure, below, shown_classes)
        words, families = writable(title, longest=100)
        above.set_title(words, fontsize=12, fontfamily=families, parse_math=False)
        below.set_xlim(0, self.end)
        minutes = self.end >= 120
        below.set_xlabel("time (min:s)" if minutes else "time (s)", fontsize=11)
        if minutes:
            below.xaxis.set_major_locator(_minute_ticks(self.end))
            below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{int(x // 60)}:{int(x % 60):02}"))
        figure.savefig(path, format="png", dpi=120)

    def _draw_spectrogram(self, figure: Any, axes: Any) -> None:
        levels = self.spectrogram.decibels()
        if not len(levels):  # the sound is shorter than a frame
            levels = np.full((1, N_MELS), -RANGE_DB, np.float32)
        width = len(levels) * self.spectrogram.seconds
        image = axes.imshow(
            levels.T,
            extent=(0, width, -0.5, N_MELS - 0.5),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-RANGE_DB,
            vmax=0,
            interpolation="nearest",
        )
        low, high = mel(LOW_HZ), mel(HIGH_HZ)
        places = [(mel(1000 * kilohertz) - low) / (high - low) * (N_MELS + 1) - 1 for kilohertz in KILOHERTZ]
        axes.set_yticks(places, [f"{kilohertz:g}" for kilohertz in KILOHERTZ], fontsize=10)
        axes.set_ylim(-1, N_MELS)
        axes.set_facecolor("black")
        axes.set_ylabel("frequency (kHz, mel)", fontsize=11)
        axes.tick_params(labelbottom=False)
        figure.colorbar(image, ax=axes, label="level (dB)", pad=0.01)

    def _draw_labels(self, figure: Any, axes: Any, shown_classes: Indices) -> None:
        scores = self._scores.columns()[:, shown_classes]
        if not len(shown_classes):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no label reaches the threshold", transform=axes.transAxes, ha="center", va="center")
            return
        image = axes.imshow(
            scores.T,
            extent=(0, len(scores) * self._scores.per_column * self.every, len(shown_classes) - 0.5, -0.5),
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=min(1.0, math.ceil(10 * float(scores.max())) / 10),
            interpolation="nearest",
        )
        self._draw_events(axes, shown_classes)
        written = [writable(self.names[index]) for index in shown_classes]
        axes.set_yticks(range(len(shown_classes)), [words for words, _ in written], fontsize=10.5)
        for tick, (_, families) in zip(axes.get_yticklabels(), written, strict=True):
            tick.set(fontfamily=families, parse_math=False)  # dollars are dollars
        axes.set_yticks(np.arange(len(shown_classes) - 1) + 0.5, minor=True)
        axes.grid(axis="y", which="minor", color="0.85", linewidth=0.8)
        axes.tick_params(axis="y", which="both", length=0)
        figure.colorbar(image, ax=axes, label="probability" if len(shown_classes) > 3 else "prob.", pad=0.01)

    def _draw_events(self, axes: Any, shown_classes: Indices) -> None:
        from matplotlib.patches import Rectangle

        places = {int(index): place for place, index in enumerate(shown_classes)}
        for index, start, end in self._events:
            if index in places:
                box = (start, places[index] - 0.4), end - start, 0.8
                axes.add_patch(Rectangle(*box, fill=False, edgecolor="black", linewidth=1.2))


def _minute_ticks(seconds: float) -> Any:
    """Ticks at round numbers of seconds and minutes, about ten."""
    from matplotlib.ticker import MultipleLocator

    steps = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    return MultipleLocator(next((step for step in steps if seconds / step <= 12), 3600 * math.ceil(seconds / 43200)))
