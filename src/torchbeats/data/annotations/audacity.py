r"""Audacity's label tracks: start, end and label, divided by tabs; a line that begins with ``\`` has its frequencies.

A track names no recording: it is that of the same name beside it. BirdNET writes a confidence behind the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torchbeats.data.annotations.annotation import Annotation, seconds
from torchbeats.data.annotations.dialects import Dialect
from torchbeats.files import one_line

COLUMNS = ["start", "end", "label", "low_freq_hz", "high_freq_hz", "confidence"]
_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*", re.ASCII)

AUDACITY = Dialect("Audacity", lambda keys: False, lambda names: ["label"], lambda names: [], lambda values: [])


def is_track(text: str) -> bool:
    """Whether a text begins as a label track does: with two times."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return _is_label(first.split("\t"))


def _is_label(cells: list[str]) -> bool:
    return len(cells) > 1 and all(_NUMBER.fullmatch(cell) for cell in cells[:2])


def read_track(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The labels of a track, each with the number of its line.

    Raises:
        ValueError: a line that a track cannot have; the message names it.
    """
    previous: tuple[int, dict[str, Any]] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.split("\t")
        if not line.strip():
            continue
        if _is_label(cells):
            if previous:
                yield previous
            score = {"confidence": _float(cells.pop())} if len(cells) > 3 and _NUMBER.fullmatch(cells[-1]) else {}
            times = {"start": _float(cells[0]), "end": _float(cells[1])}
            previous = (number, {**times, "label": "\t".join(cells[2:]).strip(), **score})
        elif previous and cells[0].strip() == "\\" and len(cells) > 2 and _is_label(cells[1:]):
            low, high = map(_float, cells[1:3])
            previous[1].update(low_freq_hz=_frequency(low), high_freq_hz=_frequency(high))
        else:
            raise ValueError(
                f"line {number:,} must have the start, the end and the label of a stretch, divided by tabs, not "
                f"{line[:60]!r}."
            )
    if previous:
        yield previous


def _float(text: str) -> float:
    return float(text.replace(",", "."))


def _frequency(value: float) -> float | None:
    return None if value < 0 else value  # Audacity writes -1 where there is none


def write_audacity(annotations: Iterable[Annotation]) -> Iterator[str]:
    """A label track of one recording, with a line for the frequencies of a label that has some."""
    for row in annotations:
        end = row.start if row.end is None else row.end
        yield f"{seconds(row.start)}\t{seconds(end)}\t{one_line(row.label)}\n"
        if row.low is not None or row.high is not None:
            low, high = (-1.0 if edge is None else edge for edge in (row.low, row.high))
            yield f"\\\t{low:.6f}\t{high:.6f}\n"
