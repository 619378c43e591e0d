"""Kaleidoscope's CSV: ``INDIR``, ``FOLDER`` and ``IN FILE`` name a recording, ``OFFSET`` and ``DURATION`` are seconds.

A label is what a person wrote (``MANUAL ID``) or, where that is empty, what the program chose (``AUTO ID``, or the
cluster ``TOP1MATCH``). Some columns may end in an asterisk. In tables of bats, which count pulses, frequencies are in
kilohertz.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchbeats.data.annotations.annotation import Annotation, seconds
from torchbeats.data.annotations.dialects import Dialect, known_labels, texts
from torchbeats.data.columns import LABEL_COLUMNS, key
from torchbeats.files import csv_line, readable
from torchbeats.remote import absolute, is_url

_LABELS = ("manual_id", "auto_id", "top1_match", "common_name", "scientific_name", *LABEL_COLUMNS)
_HEADER = (
    "INDIR",
    "FOLDER",
    "IN FILE",
    "CHANNEL",
    "OFFSET",
    "DURATION",
    "Fmin",
    "Fmax",
    "AUTO ID",
    "MANUAL ID",
    "SCORE",
)


def _paths(values: Mapping[str, Any]) -> list[str]:
    folders, below, name = (texts(values, column) for column in ("indir", "folder", "in_file"))
    if not name:
        return []
    parts = [*folders, *below, *name]
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _path_columns(names: Sequence[str]) -> list[str]:
    return [name for name in names if key(name) == "in_file"]


KALEIDOSCOPE = Dialect(
    "Kaleidoscope",
    lambda keys: "in_file" in keys and bool(keys & {"offset", "indir", "folder"}),
    lambda names: known_labels(names, _LABELS),
    _path_columns,
    _paths,
    frozenset(("noid", "no id", "nocall")),
    lambda keys: 1000.0 if {"pulses", "fc"} & keys else 1.0,  # of bats, in kilohertz
)


def write_kaleidoscope(annotations: Iterable[Annotation]) -> Iterator[str]:
    """A table for Kaleidoscope, with the labels as those that a program chose."""
    yield csv_line(_HEADER)
    for row in annotations:
        folder, name = os.path.split(absolute(row.path))
        above, below = (folder, "") if is_url(row.path) else os.path.split(folder)  # a store's name is no folder
        duration = None if row.end is None else row.end - row.start
        low, high = ("" if edge is None else f"{edge:.3f}" for edge in (row.low, row.high))
        cells = (readable(above), readable(below), readable(name), "0", seconds(row.start), seconds(duration))
        yield csv_line((*cells, low, high, row.label, "", seconds(row.peak)))
