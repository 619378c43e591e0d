"""What the columns of a list are for, whatever its writer called them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

# Of a list, the first that is there. Of all these names capitals, blanks and punctuation do not matter.
PATH_COLUMNS = (
    *("path", "file", "filename", "filepath", "file_name", "audio"),
    *("file_path", "audio_filepath", "audio_file_path", "audio_path", "audio_file", "audio_filename"),
    *("wav", "wav_path", "wav_file", "wav_filename", "fname", "sound", "sound_path", "sound_file"),
    *("clip", "clip_path", "recording", "recording_path", "slice_file_name", "begin_path", "begin_file", "url", "uri"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "category", "target", "classes"),
    *("class_name", "class_label", "event_label", "primary_label", "tag", "tags", "annotation"),
    *("species", "common_name", "scientific_name"),
)
PARTITION_COLUMNS = ("split", "fold", "group")  # a sound is in one of each
SPLIT_COLUMNS = ("subset", "partition")  # what others call the split
OF_CLIPS = {"path", "recording", "from_second", "to_second"}  # a list of what `torchbeats clips` has cut
SLICED = "slice_file_name"  # UrbanSound8K's path: its start and end are those of the recording that it was cut from
NEMO = "audio_filepath"  # NeMo's path: a duration without a start is that of a piece; elsewhere it is the whole file's

_START = (
    *("start", "begin", "onset", "start_time", "begin_time", "onset_time", "time_start", "time_begin", "t_start"),
    *("starts", "begins", "t0", "tmin", "segment_start", "clip_start", "event_onset", "event_start", "start_offset"),
    "window_start",
)
_END = (
    *("end", "stop", "finish", "end_time", "stop_time", "finish_time", "time_end", "time_stop", "t_end", "ends"),
    *("t1", "tmax", "segment_end", "clip_end", "event_offset", "event_end", "end_offset", "window_end"),
)
_DURATION = ("duration", "dur", "segment_duration", "clip_duration", "event_duration", "duration_time")
_OFFSET = ("offset", "offset_time")  # the end of what has an onset; the start of what has a duration
_FILE_OFFSET = ("file_offset",)  # Raven: where in this file; its begin and end count through all files of a sequence
_UNITS = (
    dict.fromkeys(("s", "sec", "secs", "second", "seconds", "in_s", "in_sec", "in_seconds"), 1.0)
    | dict.fromkeys(("ms", "msec", "millisecond", "milliseconds", "in_ms", "in_milliseconds"), 1e-3)
)  # fmt: skip
_LIKE_TIME = frozenset((
    *("start", "begin", "onset", "offset", "end", "stop", "finish", "duration", "dur", "time", "times"),
    *("seconds", "secs", "sec", "ms", "msec", "t0", "t1", "tmin", "tmax"),
))  # fmt: skip
# In any language: Zeit (s). Without a blank before it, "(s)" makes a plural: Label(s).
_UNIT_BEHIND = re.compile(r"(\s[(\[]s|[(\[](secs?|seconds?|ms|milliseconds?))[)\]]\s*", re.IGNORECASE)
_INDEX = re.compile(r"|unnamed_\d+|index|index_level_\d+|id|row|number")  # what pandas and spreadsheets add


@lru_cache(10_000)  # tables have few columns and many rows
def key(name: str) -> str:
    """A column's name without what differs from writer to writer: "Begin Time (s)" is begin_time_s."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", separated.lower()).strip("_")


def _is_like_time(name: str) -> bool:
    return bool(_LIKE_TIME & set(key(name).split("_"))) or _UNIT_BEHIND.search(name) is not None


class Time(NamedTuple):
    """A column of times: its name and the seconds in one of its units."""

    name: str
    unit: float


class Columns:
    """What the columns of one list are for.

    Args:
        names: of all of them.

    Attributes:
        paths: those that may hold paths, the best first.
        label: the one that holds labels, if any does.
        partitions: those for split, fold and group, by these words.
        not_understood: names that look as if they held times, and are not used.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._by_key: dict[str, str] = {}
        for name in self.names:
            self._by_key.setdefault(key(name), name)
        self.paths = [self._by_key[column] for column in PATH_COLUMNS if column in self._by_key]
        self.label = next((self._by_key[column] for column in LABEL_COLUMNS if column in self._by_key), None)
        self.partitions = {kind: self._by_key[kind] for kind in PARTITION_COLUMNS if kind in self._by_key}
        if split := next((self._by_key[name] for name in SPLIT_COLUMNS if name in self._by_key), None):
            self.partitions.setdefault("split", split)
        if self._by_key.keys() >= OF_CLIPS:
            self.partitions.setdefault("group", self._by_key["recording"])
        self.start, self.end = self._time(_START), self._time(_END)
        self.duration, offset = self._time(_DURATION), self._time(_OFFSET)
        self.file_offset = self._time(_FILE_OFFSET)
        if offset and self.start and not self.end:
            self.end = offset
        elif offset and not self.start:
            self.start = offset
        path = key(self.paths[0]) if self.paths else ""
        if self.start is None and self.end is None and path != NEMO:
            self.duration = None
        if path == SLICED:
            self.start = self.end = self.duration = None
        used = {time.name for time in self.times}
        remaining = (name for name in self.names if name not in used and name not in self.paths and name != self.label)
        self.not_understood = [name for name in remaining if _is_like_time(name)]

    @property
    def times(self) -> list[Time]:
        """The columns that say where in a file a piece lies."""
        return [time for time in (self.start, self.end, self.duration, self.file_offset) if time is not None]

    @property
    def unused(self) -> list[str]:
        """The columns that have no known use, those that only number the rows left out."""
        used = {
            *self.paths,
            *self.partitions.values(),
            *(time.name for time in self.times),
            *self.not_understood,
            self.label,
        }
        return [name for name in self.names if name not in used and not _INDEX.fullmatch(key(name))]

    def _time(self, bases: Iterable[str]) -> Time | None:
        for base in bases:
            if base in self._by_key:
                return Time(self._by_key[base], 1.0)
            for suffix, unit in _UNITS.items():
                if f"{base}_{suffix}" in self._by_key:
                    return Time(self._by_key[f"{base}_{suffix}"], unit)
        return None

    def piece(self, values: Mapping[str, Any]) -> tuple[float, float | None]:
        """Where a row's piece starts and ends in its file, in seconds; an end of None is the file's.

        Raises:
            ValueError: a time that is not a number; the message names the column.
        """
        start, end, duration, file_offset = (
            None if column is None else _seconds(values.get(column.name), column)
            for column in (self.start, self.end, self.duration, self.file_offset)
        )
        first = start or 0.0
        if file_offset is not None:
            end = None if end is None else file_offset + (end - first)
            first = file_offset
        if end is None and duration is not None:
            end = first + duration
        return first, end


MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "nat", "none", "null", "nil"))


def is_missing(value: Any) -> bool:
    """Whether a cell says that there is no value."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and value.strip().lower() in MISSING


def _seconds(value: Any, column: Time) -> float | None:
    if is_missing(value):
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", value):  # a decimal comma
            value = value.replace(",", ".")
        return float(value) * column.unit
    except (TypeError, ValueError, OverflowError):
        unit = "seconds" if column.unit == 1 else "milliseconds"
        raise ValueError(f"its column {column.name!r} must hold {unit}, not {_short(value)}.") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
