"""Class probabilities of windows → rows with the likeliest labels, a row a sound or a timeline; regions of a track."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from torchbeats import audio
from torchbeats.abstention import Naming, Scored
from torchbeats.audio import Floats
from torchbeats.data.sounds import Sound
from torchbeats.errors import SettingsError
from torchbeats.inference import Group, groups_of
from torchbeats.loading import ready
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.plans import BATCH_SECONDS, SHORTEST_SECONDS, WINDOW_SECONDS, ScorePlan, Window
from torchbeats.protocol import Model
from torchbeats.weights import hub

Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.intp]]"

TOP = 5
TIMELINE_WINDOW_SECONDS = 2.0  # less says little: models have learned from clips of ten seconds
SHORTEST_EVERY = SHORTEST_SECONDS / 10


class Tags(NamedTuple):
    """One row of results.

    Attributes:
        path: of the file; ``[i]`` for the i-th input where that was an array.
        start: in seconds.
        end: in seconds.
        labels: pairs of a label and its probability, the likeliest first.
    """

    path: str
    start: float
    end: float
    labels: list[tuple[str, float]]


class Region(NamedTuple):
    """A stretch of a recording, in seconds, with one label."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class TimelinePlan(ScorePlan):
    """How a timeline is made: rows of ``hop`` seconds that join, each scored by the window around its middle.

    At a recording's ends windows are cut off, not filled with silence. A rest of less than half a row, or half a
    second, joins the last row.

    Args:
        hop: seconds of a row; the window's length where not given.
        views: how often each window is heard; see `ScorePlan`.
        window: seconds that the model sees at once.
        batch_seconds: audio in a batch, padding included.
    """

    def __post_init__(self) -> None:
        if self.window is None:
            raise SettingsError("A timeline needs a window of some seconds.")
        if self.hop is not None and not SHORTEST_EVERY <= self.hop <= self.window:
            raise SettingsError(
                f"The rows of a timeline must have between {SHORTEST_EVERY} s and the window's {self.window} s, not "
                f"{self.hop}."
            )
        super().__post_init__()

    @property
    def _samples(self) -> tuple[int, int, int, int]:
        """Numbers of samples: of a row, of the window before it, of the window behind it, and of the shortest row."""
        assert self.window is not None
        length = round(self.window * SAMPLE_RATE)
        hop = length if self.hop is None else round(self.hop * SAMPLE_RATE)
        before = (length - hop) // 2
        behind = length - hop - before
        # No more than `behind`: so a window's end tells whether its row is the last.
        shortest = min(round(SHORTEST_SECONDS * SAMPLE_RATE), hop // 2, behind or hop)
        return hop, before, behind, shortest

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[Window]:
        """Cut a stream of samples into windows, each for the row around whose middle it lies."""
        hop, before, behind, shortest = self._samples
        total = 0

        def padded() -> Iterator[Floats]:
            nonlocal total
            yield np.zeros(before, np.float32)
            for block in blocks:
                total += len(block)
                yield block
            yield np.zeros(behind, np.float32)

        for start, samples in audio.windows(padded(), before + hop + behind, hop, shortest):
            first = start - before  # of the window in the recording; what lies outside of that is taken off again
            samples = samples[max(0, -first) : total - first]
            end = max(0, first) + len(samples)
            yield Window(start, end if end < start + hop + shortest else start + hop, samples)


def score_plan(
    every: float | None = None,
    window: float | None = None,
    batch_seconds: float = BATCH_SECONDS,
    views: int = 1,
) -> ScorePlan:
    """A timeline with a row ``every`` so many seconds, or a row a file where not given.

    Args:
        every: seconds of a row.
        window: seconds that the model sees at once. Where not given, 10 for a row a file; for a timeline ``every``,
            but at least 2.
        batch_seconds: audio in a batch.
        views: how often each window is heard; see `ScorePlan`.

    Raises:
        ValueError: a setting that makes no sense, named.
    """
    if every is None:
        window = WINDOW_SECONDS if window is None else window
        return ScorePlan(window=window, batch_seconds=batch_seconds, views=views)
    if window is None:
        window = max(every, TIMELINE_WINDOW_SECONDS)
    return TimelinePlan(every, window=window, batch_seconds=batch_seconds, views=views)


def check_choice(top: int, threshold: float) -> None:
    """Raise a `SettingsError` where no labels can be chosen so."""
    if top < 1:
        raise SettingsError(f"A row must have at least one label, not {top}.")
    if not 0 <= threshold <= 1:
        raise SettingsError(f"The threshold is a probability, from 0 to 1, not {threshold}.")


def likeliest(probabilities: Floats, top: int, threshold: float | Floats = 0.0) -> Indices:
    """Indices of at most ``top`` classes with at least the threshold, of all or of each, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return order[(probabilities >= threshold)[order]]


def scored(results: Iterable[Group], plan: ScorePlan) -> Iterator[Scored]:
    """Results of a plan from `score_plan`, as rows: a timeline's, or one a file, as soon as it is complete."""
    return _timeline(results) if isinstance(plan, TimelinePlan) else _by_file(results)


def _timeline(results: Iterable[Group]) -> Iterator[Scored]:
    for group in results:
        for path, (start, end), values in zip(group.paths, group.times.tolist(), group.values, strict=True):
            yield Scored(path, start, end, values)


def _by_file(results: Iterable[Group]) -> Iterator[Scored]:
    """The mean of each file's windows, weighted by their seconds."""
    path, first, end, seconds, total = "", 0.0, 0.0, 0.0, np.zeros(0)

    def complete() -> Iterator[Scored]:
        if len(total):
            yield Scored(path, first, end, (total / seconds).astype(np.float32))

    for group in results:
        for row, begins in zip(group.rows(), group.begins.tolist(), strict=True):
            if begins:
                yield from complete()
                path, first, seconds, total = row.path, row.start, 0.0, np.zeros(len(row.embedding))
            total += (row.end - row.start) * row.embedding.astype(np.float64)
            seconds += row.end - row.start
            end = row.end
        if not group.position.windows:  # no file is under way
            yield from complete()
            total = np.zeros(0)


def tags(rows: Iterable[Scored], names: list[str], top: int = TOP, threshold: float | Floats = 0.0) -> Iterator[Tags]:
    """Rows with the likeliest labels; a row has none where none has the threshold, of all classes or its own."""
    for path, start, end, probabilities in rows:
        indices = likeliest(probabilities, top, threshold)
        yield Tags(path, start, end, [(names[index], float(probabilities[index])) for index in indices])


def regions(rows: Iterable[Tags]) -> Iterator[Region]:
    """One recording's timeline → for each label the stretches where it goes on, in the order of their ends."""
    open_regions: dict[str, Region] = {}
    for row in rows:
        here = dict.fromkeys(label for label, _ in row.labels)
        yield from sorted(open_regions.pop(label) for label in list(open_regions) if label not in here)
        for label in here:
            start = open_regions[label].start if label in open_regions else row.start
            open_regions[label] = Region(start, row.end, label)
    yield from sorted(open_regions.values())


def tag(
    inputs: Sound | Iterable[Sound],
    model: Model | str | os.PathLike[str] | None = None,
    *,
    top: int = TOP,
    threshold: float = 0.0,
    every: float | None = None,
    window: float | None = None,
    views: int = 1,
    unknown: bool = True,
    batch_seconds: float = BATCH_SECONDS,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
) -> Iterator[Tags]:
    """Name what is to be heard, lazily: files are read and rows computed as they are asked for.

    Args:
        inputs: as for `embed`.
        model: a fine-tuned `BEATs` or `OnnxModel`, or what `load` takes; the built-in tagger where not given, with a
            warning that says so.
        top: labels in a row, at most.
        threshold: the probability that a label must have.
        every: seconds of a row in a timeline; a row a file where not given, the mean over its windows.
        window: seconds that the model sees at once: 10, in a timeline ``every`` but at least 2, where not given. A row
            of a timeline is scored by the window around its middle.
        views: how often each window is heard, a share of a step of 160 ms later each time; probabilities are the mean.
            For short sounds; it takes so many times as long.
        unknown: a row that is less familiar than the model's file asks for has the one label "unknown", with the
            probability that the likeliest class would have been wrong. False names the likeliest classes all the same.
        batch_seconds: audio in a batch; less of it takes less memory.
        device: where to compute; where the model is, if not given.
        dtype: to compute in; the model's own, if not given. A model of the caller's stays as it is.
        jobs: threads that decode; up to four where not given.

    Yields:
        `Tags` rows in the order of the inputs. A file that cannot be read is left out with an `AudioWarning`.

    Raises:
        ValueError: a setting that makes no sense, a model without labels, or inputs that name no files.
    """
    plan = score_plan(every, window, batch_seconds, views)
    check_choice(top, threshold)
    if model is None:
        warnings.warn(hub.BUILT_IN_TAGGER_NOTE, stacklevel=2)
        model = hub.BUILT_IN_TAGGER
    network = ready(model, device, dtype)
    results = groups_of(inputs, network, plan, jobs)
    naming = Naming(network, unknown)
    return tags(naming.judged(scored(results, plan)), naming.names, top, naming.thresholds(threshold))
