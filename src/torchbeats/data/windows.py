"""Labelled stretches of recordings → windows with the labels of the stretches that they share enough time with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchbeats import audio
from torchbeats.data.example import Example
from torchbeats.data.pieces import impossible
from torchbeats.errors import AudioError, SettingsError

MIN_OVERLAP = 0.5
SHORTEST_SECONDS = 0.5  # a shorter rest of a recording joins the window before
LONGEST_SECONDS = 7 * 24 * 3600.0  # of a recording whose length nobody knows; stretches may claim anything


@dataclass(frozen=True)
class Windows:
    """How recordings are cut into windows.

    Args:
        seconds: length of a window; they join. A last one may be shorter.
        min_overlap: the share of the shorter of the two, window or stretch, that they must have in common.
        fully_annotated: what no stretch covers contains nothing of the classes; where not, it is left out.
        plain_lists: cut also what plain lists name with start and end; else each of these is an example by itself.
    """

    seconds: float
    min_overlap: float = MIN_OVERLAP
    fully_annotated: bool = False
    plain_lists: bool = False

    def __post_init__(self) -> None:
        check_overlap(self.min_overlap)

    def cut(self, stretches: Iterable[Example], recordings: Sequence[str] = ()) -> tuple[list[Example], list[Example]]:
        """The windows of recordings, and the stretches that are in none of them.

        Args:
            stretches: of files, with their labels.
            recordings: that were annotated, whether anything was heard in them or not.
        """
        by_path: dict[str, list[Example]] = {path: [] for path in recordings}
        for example in stretches:
            by_path.setdefault(example.path, []).append(example)
        windows, unused = [], []
        for path, path_stretches in by_path.items():
            covered = self._covered(path, path_stretches)
            windows += covered[0]
            unused += covered[1]
        return windows, unused

    def _covered(self, path: str, path_stretches: list[Example]) -> tuple[list[Example], list[Example]]:
        length = _length(path, path_stretches)
        edges = self._edges(length)
        covering = defaultdict[int, list[Example]](list)
        unused = []
        for example in path_stretches:
            if impossible(example.start, example.end, length, points=True):
                unused.append(example)
                continue
            end = math.inf if example.end is None else example.end
            first = max(0, int(example.start / self.seconds) - 1)
            used = False
            for number in range(first, len(edges)):
                if edges[number][0] > end:
                    break
                if covers(example, *edges[number], self.min_overlap):
                    covering[number].append(example)
                    used = True
            if not used:
                unused.append(example)
        windows = []
        for number, (start, end) in enumerate(edges):
            if number in covering or self.fully_annotated:
                labels = dict.fromkeys(label for example in covering[number] for label in example.labels)
                about = (covering[number] or path_stretches or [Example(path, ())])[0]
                windows.append(about._replace(labels=tuple(labels), start=start, end=end))
        return windows, unused

    def _edges(self, length: float) -> list[tuple[float, float]]:
        count = max(1, math.ceil(length / self.seconds - 1e-9))
        if count > 1 and length - (count - 1) * self.seconds < min(SHORTEST_SECONDS, self.seconds / 2):
            count -= 1
        starts = [number * self.seconds for number in range(count)]
        return list(zip(starts, [*starts[1:], length], strict=True))


def check_overlap(share: float) -> None:
    """Raise a `SettingsError` where an overlap is no share."""
    if not 0 < share <= 1:
        raise SettingsError(f"The overlap is a share, more than 0 and at most 1, not {share}.")


def covers(stretch: Example, start: float, end: float, min_overlap: float) -> bool:
    """Whether a stretch and a window have so much in common; a point must lie in the window."""
    stop = math.inf if stretch.end is None else stretch.end
    if stop == stretch.start:
        return start <= stop < end
    common = min(end, stop) - max(start, stretch.start)
    return common > 0 and common >= min_overlap * min(end - start, stop - stretch.start) - 1e-9


def _length(path: str, stretches: Iterable[Example]) -> float:
    """Seconds of a recording; where its header does not tell, or it cannot be read, as far as stretches reach."""
    try:
        seconds = audio.duration(path)
    except AudioError:
        seconds = None
    if seconds is not None:
        return seconds
    ends = (example.start + SHORTEST_SECONDS if example.end is None else example.end for example in stretches)
    return min(max(ends, default=SHORTEST_SECONDS), LONGEST_SECONDS)
