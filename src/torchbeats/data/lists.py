"""A list of sounds, in any format → its rows: files or pieces of them, and the list's other columns."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torchbeats.data.annotations.dialects import Dialect
from torchbeats.data.annotations.formats import dialect_of
from torchbeats.data.annotations.recordings import Recordings
from torchbeats.data.columns import PATH_COLUMNS, SLICED, Columns, is_missing, key
from torchbeats.data.list_formats.formats import LISTS
from torchbeats.data.list_formats.raw_list import NUL, RawList, note
from torchbeats.data.listed_paths import ListedPaths
from torchbeats.data.stored import StoredSound
from torchbeats.errors import InputError, quoted, some_of
from torchbeats.files import is_called_like_url, with_both_slashes

LONGEST_PATH = 4096  # characters; no system opens longer ones


class Row(NamedTuple):
    """A row of a list that names a sound.

    Attributes:
        number: of its line, or of its row where the list is Parquet, from 1.
        path: of the file, as it can be opened from here.
        start: of the piece, in seconds.
        end: of the piece, in seconds; None for the file's end.
        values: of the list's other columns, by their names.
        content: where the sound is, if it is in the list itself.
    """

    number: int
    path: str
    start: float
    end: float | None
    values: dict[str, Any]
    content: StoredSound | None = None


@dataclass
class SoundList:
    """A list that was read.

    Attributes:
        path: of the list.
        columns: what its columns are for.
        rows: those that name a sound.
        unit: "line" or "row", what the numbers of rows count.
        label_names: of columns that hold the numbers of classes, the names of these, where the list has them.
        dialect: of the program that wrote it, if these are annotations of a known one.
        recording: that all rows are of, where they name none.
    """

    path: Path
    columns: Columns
    rows: list[Row]
    unit: str = "line"
    label_names: dict[str, list[str]] = field(default_factory=dict)
    dialect: Dialect | None = None
    recording: str | None = None

    def place(self, number: int) -> str:
        """A row's place, for messages."""
        return f"{self.unit} {number:,}"

    def note(self, message: str) -> None:
        """Warn with a message that names the list."""
        note(self.path, message)

    def left_out(self, reason: str, numbers: Sequence[int]) -> None:
        """Note that rows were left out, if any were."""
        if numbers:
            count = f"{len(numbers):,} row{'s' * (len(numbers) > 1)} left out"
            self.note(f"{count}, {reason}: {some_of(map(self.place, numbers), 5)}.")


def read_list(path: Path, labels: bool | str = False, recordings: Recordings | None = None) -> SoundList:
    """The rows of a list that name a sound. An `AudioWarning` tells what is unusual about it.

    Args:
        path: of a list with one of `LIST_SUFFIXES`; annotations of Raven, Audacity, Kaleidoscope and BirdNET are lists.
        labels: True where labels, splits and the like are needed too; or the name of the column with the labels.
        recordings: where sounds are searched for by their names that are not where the list has them.

    Raises:
        InputError: there is no such list, it cannot be read, or has no paths; the message names the line.
    """
    with _errors(path):
        result, rows = _open(path, labels, recordings)
        result.rows.extend(rows)
    _note_times(result)
    return result


def iterate_list(path: Path) -> Iterator[Row]:
    """The rows of `read_list` one by one; an error in a row is raised when the row is reached."""
    with _errors(path):
        result, rows = _open(path, False, None)
        if result.dialect is not None:  # annotations are judged as a whole, and never many
            result.rows.extend(rows)
            rows = iter(result.rows)
        yield from rows
    _note_times(result)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if is_called_like_url(path):
            raise InputError(
                f"The list {with_both_slashes(path)} must be a file of this machine: download it. It may hold URLs."
            ) from None
        raise InputError(f"There is no list {path}.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The list {path} cannot be read: {error}") from error


def _open(path: Path, labels: bool | str, recordings: Recordings | None) -> tuple[SoundList, Iterator[Row]]:
    """A list without its rows, and an iterator over these."""
    raw = LISTS[path.suffix.lower()](path, labels)
    columns = Columns(raw.names)
    dialect = raw.dialect or dialect_of(raw.names)
    recordings = recordings or Recordings()
    if dialect is not None:
        columns.paths = dialect.path_columns(raw.names)
    if raw.path is not None:
        columns.paths = [raw.path]
    if not columns.paths and dialect is None:
        names = ", ".join(name[:40] for name in columns.names[:20]) or "none"
        raise ValueError(f"it needs a column called {' or '.join(PATH_COLUMNS[:6])}; it has {names}.")
    result = SoundList(path, columns, [], raw.unit, raw.label_names, dialect)
    if repeated := [name for name, count in Counter(raw.names).items() if name and count > 1]:
        result.note(f"there is more than one column {quoted(repeated)}; of each the last is read.")
    if not columns.paths:
        result.recording = recordings.named_like(path)
    if labels:
        label_columns = _label_columns(result, labels)
        raw.rows = _with_label(raw.rows, label_columns) if len(label_columns) > 1 else raw.rows
    return result, _rows(result, raw, bool(labels), recordings)


def _note_times(result: SoundList) -> None:
    """Note what is unusual about a list's times."""
    columns = result.columns
    if message := _note_on_sequence(result):
        result.note(message)
    if columns.not_understood and result.dialect is None:
        names = quoted(columns.not_understood)
        consequence = "" if columns.times else ": whole files are taken"
        result.note(f"the columns {names} look like times, and are not used{consequence}.")


def _note_on_sequence(result: SoundList) -> str | None:
    """What to know of a Raven table whose times may count through several recordings, and do not say so."""
    recordings = dict.fromkeys(row.path for row in result.rows)
    if result.dialect is None or result.dialect.name != "Raven" or result.columns.file_offset or len(recordings) < 2:
        return None
    return (
        f"it names {len(recordings):,} recordings and has no column File Offset (s): its times are taken as times in "
        "each recording. If they count through all of them, let Raven add this column."
    )


def _label_columns(result: SoundList, labels: bool | str) -> list[str]:
    """The columns that have labels: of a row the first with one counts; the first also becomes the list's column."""
    columns, dialect = result.columns, result.dialect
    selected = [columns.label] if columns.label is not None else []
    if isinstance(labels, str):
        matching = [name for name in columns.names if key(name) == key(labels)]
        selected = [name for name in matching if name == labels] or matching[:1]
        if not selected:
            raise ValueError(f"it has no column {labels!r} for labels; there are {quoted(columns.names, 20)}.")
    elif dialect is not None:
        selected = dialect.label_columns(columns.names)
        if dialect.name == "Raven" and len(selected) > 1:
            raise ValueError(f"which of its columns {quoted(selected)} has the labels? Name it: --label-column.")
        if not selected:
            raise ValueError(f"it has no column for labels; there are {quoted(columns.names, 20)}.")
    columns.label = selected[0] if selected else None
    return selected


def _with_label(
    rows: Iterable[tuple[int, dict[str, Any]]], names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the first label that there is in the first of several columns."""
    for number, values in rows:
        first = next((values[name] for name in names if not is_missing(values.get(name))), None)
        yield number, {**values, names[0]: first}


def _rows(result: SoundList, raw: RawList, labels: bool, recordings: Recordings) -> Iterator[Row]:
    columns, paths = result.columns, ListedPaths(result.path, raw.encoding, recordings, result.dialect is not None)
    columns_needed = {*columns.partitions.values(), *columns.unused, columns.label} if labels else set[str | None]()
    left_out = defaultdict[str, list[int]](list)
    for number, values in raw.rows:
        sound = next((values[name] for name in columns.paths if name in values), None)
        content = sound if isinstance(sound, StoredSound) else None
        if isinstance(sound, dict):
            sound = sound.get("path")
        other_names: Sequence[str] = ()
        if result.dialect is not None:
            if not columns.paths and not result.recording:
                raise ValueError(
                    f"it names no recording, and there is no sound called like it beside it, as "
                    f"{result.path.name.split('.')[0]}.wav would be."
                )
            names = result.dialect.paths(values) if columns.paths else [str(result.recording)]
            sound, other_names = (names[0], names[1:]) if names else (None, ())
        is_empty = sound is None or (isinstance(sound, str) and not sound.strip())
        if is_empty and all(is_missing(value) for value in values.values()):
            continue  # an empty line
        if is_empty:
            left_out["which name no file"].append(number)
        elif content is None and not isinstance(sound, str):
            raise ValueError(f"{result.place(number)} must hold a path, not {repr(sound)[:60]}.")
        elif isinstance(sound, str) and (NUL in sound or "\0" in sound):
            left_out["whose path has a NUL character"].append(number)
        elif isinstance(sound, str) and _is_pipe(sound):
            left_out["since commands are never run (|)"].append(number)
        elif labels and result.dialect is not None and (reason := result.dialect.left_out(values)):
            left_out[reason].append(number)
        else:
            if isinstance(sound, str) and len(sound) > LONGEST_PATH:
                raise ValueError(f"{result.place(number)} holds a path of {len(sound):,} characters.")
            try:
                start, end = columns.piece(values)
            except ValueError as error:
                raise ValueError(f"{result.place(number)}: {error}") from None
            if content:
                path: str | None = content.name
            elif not columns.paths:
                path = result.recording
            else:
                path = paths.resolve(str(sound), number, _folders_of(columns, values), other_names)
            if path is not None:
                values = {name: value for name, value in values.items() if name in columns_needed}
                yield Row(number, path, start, end, values, content)
    for reason, numbers in left_out.items():
        result.left_out(reason, numbers)
    for message in paths.notes():
        result.note(message)


def _is_pipe(text: str) -> bool:
    return text.rstrip().endswith("|") or text.lstrip().startswith("|")


def _folders_of(columns: Columns, values: dict[str, Any]) -> Sequence[str]:
    """Where else beside the list UrbanSound8K has a file: in a folder for each fold."""
    if not columns.paths or key(columns.paths[0]) != SLICED or "fold" not in columns.partitions:
        return ()
    fold = f"fold{str(values.get(columns.partitions['fold'])).strip()}"
    return fold, f"audio/{fold}", f"../audio/{fold}"
