"""Class probabilities of windows → rows with the likeliest labels, a row a sound or a timeline; regions of a track."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from torchbeats import audio, labels
from torchbeats.audio import Floats
from torchbeats.inference import Group, Sound, Times, groups_of
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.onnx.engine import OnnxModel
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.plans import BATCH_SECONDS, SHORTEST_SECONDS, WINDOW_SECONDS, ScorePlan
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


class Scored(NamedTuple):
    """As `Tags`, with the probabilities of all classes, ``(classes,)``."""

    path: str
    start: float
    end: float
    probabilities: Floats


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
            raise ValueError("A timeline needs a window of some seconds.")
        if self.hop is not None and not SHORTEST_EVERY <= self.hop <= self.window:
            raise ValueError(
                f"The rows of a timeline must have between {SHORTEST_EVERY} s and the window's {self.window} s, not "
                f"{self.hop}."
            )
        super().__post_init__()

    @property
    def _samples(self) -> tuple[int, int, int, int]:
        """Of a row; of what a window has before it; of what it has behind it; of the shortest row."""
        assert self.window is not None
        length = round(self.window * SAMPLE_RATE)
        hop = length if self.hop is None else round(self.hop * SAMPLE_RATE)
        before = (length - hop) // 2
        behind = length - hop - before
        # No more than `behind`: so a window's end tells whether its row is the last, see `ends`.
        shortest = min(round(SHORTEST_SECONDS * SAMPLE_RATE), hop // 2, behind or hop)
        return hop, before, behind, shortest

    def windows(self, blocks: Iterable[Floats], grid: PatchGrid) -> Iterator[tuple[int, Floats]]:
        """Cut a stream of samples into ``(start of the row, samples of the window)``."""
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
            begin = start - before  # of the window in the recording; what lies outside of that is taken off again
            yield start, samples[max(0, -begin) : total - begin]

    def ends(self, times: Times) -> Times:
        """Ends of the rows ``(rows,)`` in seconds.

        Args:
            times: of a group, ``(rows, 2)``: where a row starts, and that plus the length of its window.
        """
        hop, before, _, shortest = self._samples
        start, end = np.rint(times * SAMPLE_RATE).T
        end -= np.minimum(before, start)  # where the window really ends
        return np.where(end < start + hop + shortest, end, start + hop) / SAMPLE_RATE


def plan_for(
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
    """Raise a ``ValueError`` where no labels can be chosen so."""
    if top < 1:
        raise ValueError(f"A row must have at least one label, not {top}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold is a probability, from 0 to 1, not {threshold}.")


def class_names(model: BEATs | OnnxModel) -> list[str]:
    """A readable name for each output of a model: AudioSet ids become names; "class 7" where its file has none."""
    return labels.class_names(model.label_dict, model.cfg.predictor_class)


def likeliest(probabilities: Floats, top: int, threshold: float = 0.0) -> Indices:
    """Indices of at most ``top`` classes with at least ``threshold``, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return order[probabilities[order] >= threshold]


def scored(found: Iterable[Group], plan: ScorePlan) -> Iterator[Scored]:
    """Results of a plan from `plan_for`, as rows: a timeline's, or one a file, as soon as it is complete."""
    return _timeline(found, plan) if isinstance(plan, TimelinePlan) else _by_file(found)


def _timeline(found: Iterable[Group], plan: TimelinePlan) -> Iterator[Scored]:
    for group in found:
        ends = plan.ends(group.times).tolist()
        for path, start, end, values in zip(group.paths, group.times[:, 0].tolist(), ends, group.values, strict=True):
            yield Scored(path, start, end, values)


def _by_file(found: Iterable[Group]) -> Iterator[Scored]:
    """The mean of each file's windows, weighted by their seconds; windows do not overlap, and the first starts at 0."""
    path, end, total = "", 0.0, np.zeros(0)

    def complete() -> Iterator[Scored]:
        nonlocal end
        if end:
            yield Scored(path, 0.0, end, (total / end).astype(np.float32))
        end = 0.0

    for group in found:
        for row in group.rows():
            if row.start == 0:
                yield from complete()
                path, total = row.path, np.zeros(len(row.embedding))
            total += (row.end - row.start) * row.embedding.astype(np.float64)
            end = row.end
        if not group.position.windows:  # no file is under way
            yield from complete()


def tags(rows: Iterable[Scored], names: list[str], top: int = TOP, threshold: float = 0.0) -> Iterator[Tags]:
    """Rows with the likeliest labels; a row has none where none has ``threshold``."""
    for path, start, end, probabilities in rows:
        chosen = likeliest(probabilities, top, threshold)
        yield Tags(path, start, end, [(names[index], float(probabilities[index])) for index in chosen])


def regions(rows: Iterable[Tags]) -> Iterator[Region]:
    """One recording's timeline → for each label the stretches where it goes on, in the order of their ends."""
    going: dict[str, Region] = {}
    for row in rows:
        here = dict.fromkeys(label for label, _ in row.labels)
        yield from sorted(going.pop(label) for label in list(going) if label not in here)
        for label in here:
            start = going[label].start if label in going else row.start
            going[label] = Region(start, row.end, label)
    yield from sorted(going.values())


def tag(
    inputs: Sound | Iterable[Sound],
    model: BEATs | OnnxModel | str | os.PathLike[str] | None = None,
    *,
    top: int = TOP,
    threshold: float = 0.0,
    every: float | None = None,
    window: float | None = None,
    views: int = 1,
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
        batch_seconds: audio in a batch; less of it takes less memory.
        device: the model goes there; where it is, if not given.
        dtype: the model takes it; its own, if not given.
        jobs: threads that decode; up to four where not given.

    Yields:
        `Tags` rows in the order of the inputs. A file that cannot be read is left out with an `AudioWarning`.

    Raises:
        ValueError: a setting that makes no sense, a model without labels, or inputs that name no files.
    """
    plan = plan_for(every, window, batch_seconds, views)
    check_choice(top, threshold)
    if model is None:
        warnings.warn(hub.BUILT_IN_TAGGER_NOTE, stacklevel=2)
        model = hub.BUILT_IN_TAGGER
    network = model if isinstance(model, nn.Module) else load(model)
    plan.check(network)
    found = groups_of(inputs, network, plan, device, dtype, jobs)
    return tags(scored(found, plan), class_names(network), top, threshold)
