"""Raven's selection tables: cells divided by tabs, a row a selection; times may count through a sequence of files.

With several files open, `Begin Time (s)` and `End Time (s)` count from the beginning of the first. `Begin Path` or
`Begin File` names the file that a selection begins in, and `File Offset (s)` says where in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchbeats import audio
from torchbeats.data.annotations.annotation import Annotation, seconds
from torchbeats.data.annotations.dialects import Dialect, known_labels, known_paths, texts
from torchbeats.data.columns import key
from torchbeats.errors import AudioError
from torchbeats.files import one_line, readable
from torchbeats.remote import absolute

PATHS = ("begin_path", "begin_file")
_MEASUREMENT = re.compile(r".*\([^()]*\)\s*")  # Raven writes the unit of a measurement behind its name
_NO_LABEL = frozenset((
    *("selection", "view", "channel", "begin_path", "begin_file", "end_path", "end_file", "occupancy", "length"),
    *("begin_date", "end_date", "begin_hour", "end_hour", "begin_clock_time", "end_clock_time", "begin_date_time"),
    *("begin_time", "end_time", "low_freq", "high_freq", "file_offset", "delta_time", "delta_freq"),
    *("confidence", "score", "probability", "peak", "mean", "peak_score", "mean_score"),
    *("notes", "note", "comment", "comments", "annotator"),
))  # fmt: skip
_HEADER = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin Path", "Begin File", "File Offset (s)", "Annotation", "Peak Score", "Mean Score"),
)
LOWEST, HIGHEST = 0.0, 8000.0  # Hz: what the models hear; Raven draws no selection without a box


def _recognises(keys: set[str]) -> bool:
    marks = {"selection", "view", "low_freq_hz", "low_freq_khz", *PATHS}
    return "begin_time_s" in keys and bool(keys & {*marks, "end_time_s"})


def _label_columns(names: Sequence[str]) -> list[str]:
    """A known name; else every column that is none of Raven's own."""
    if label_columns := known_labels(names):
        return label_columns[:1]
    return [name for name in names if name and not _MEASUREMENT.fullmatch(name) and key(name) not in _NO_LABEL]


def _paths(values: Mapping[str, Any]) -> list[str]:
    return texts(values, *PATHS) or texts(values, *(key(name) for name in known_paths(list(values))))


RAVEN = Dialect("Raven", _recognises, _label_columns, known_paths, _paths, frozenset(("nocall",)))


def write_raven(annotations: Iterable[Annotation]) -> Iterator[str]:
    """A selection table; of several recordings, times go on from one to the next, as Raven counts them.

    Frequencies that are not known are those of the model's spectrogram, as Raven draws no selection without them.
    """
    yield "\t".join(_HEADER) + "\n"
    offsets: dict[str, float] = {}  # of each recording, where Raven puts it behind those before
    path, total, last = None, 0.0, 0.0
    for number, row in enumerate(annotations, start=1):
        if row.path != path:
            if path is not None and offsets[path] + 1e-9 >= total:
                total += _length(path, last)
            path, last = row.path, 0.0
            offsets.setdefault(path, total)
        end = row.end if row.end is not None else _length(path, row.start)
        last = max(last, end)
        cells = (
            str(number),
            "Spectrogram 1",
            "1",
            seconds(offsets[path] + row.start),
            seconds(offsets[path] + end),
            f"{LOWEST if row.low is None else row.low:.3f}",
            f"{HIGHEST if row.high is None else row.high:.3f}",
            one_line(readable(absolute(path))),  # Raven knows no working directory
            one_line(readable(os.path.basename(path))),
            seconds(row.start),
            one_line(row.label),
            seconds(row.peak),
            seconds(row.mean),
        )
        yield "\t".join(cells) + "\n"


def _length(path: str, least: float) -> float:
    """Seconds of a recording by its header; where that does not tell, what is known of it."""
    try:
        return max(audio.duration(path) or 0.0, least)
    except AudioError:
        return least
