"""BirdNET's CSV, and its table for R. Older versions name no recording: it is the one that the table is called after.

BirdNET-Analyzer writes ``Start (s),End (s),Scientific name,Common name,Confidence``, from version 1.3 on with ``File``
and other columns behind; for R ``filepath,start,end,scientific_name,common_name,confidence`` and more. Its tables for
Raven and Kaleidoscope are read as those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchbeats.data.annotations.annotation import Annotation, seconds
from torchbeats.data.annotations.dialects import Dialect, known_labels, known_paths, texts
from torchbeats.data.columns import LABEL_COLUMNS, PATH_COLUMNS
from torchbeats.files import csv_line, readable

_NAMES = {"scientific_name", "common_name"}


def _recognises(keys: set[str]) -> bool:
    if {"start_s", "end_s"} <= keys:
        return bool(keys & _NAMES)
    return {"start", "end", "confidence", *_NAMES} <= keys


def _paths(values: Mapping[str, Any]) -> list[str]:
    return texts(values, *PATH_COLUMNS)


BIRDNET = Dialect(
    "BirdNET",
    _recognises,
    lambda names: known_labels(names, ("common_name", "scientific_name", *LABEL_COLUMNS)),
    known_paths,
    _paths,
    frozenset(("nocall",)),
)


def write_birdnet(annotations: Iterable[Annotation]) -> Iterator[str]:
    """A table as BirdNET-Analyzer writes it; a label that has both names (``Turdus merula_Blackbird``) is divided."""
    yield csv_line(("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"))
    for row in annotations:
        scientific, _, common = row.label.rpartition("_") if row.label.count("_") == 1 else ("", "", row.label)
        times = seconds(row.start), seconds(row.end)
        yield csv_line((*times, scientific or common, common, seconds(row.peak), readable(row.path)))
