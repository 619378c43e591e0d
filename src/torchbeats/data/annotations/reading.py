"""Files and folders of annotations → `Annotation`s, whichever program wrote them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torchbeats.data.annotations import audacity
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.annotations.dialects import number
from torchbeats.data.annotations.formats import dialect_of
from torchbeats.data.annotations.recordings import Recordings
from torchbeats.data.cells import composed, items
from torchbeats.data.columns import Columns, is_missing, key
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.data.list_formats.tables import DELIMITERS
from torchbeats.data.lists import Row, SoundList, read_list
from torchbeats.data.text import decode
from torchbeats.errors import InputError

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")  # of files that a folder is searched for
HEAD = 1 << 16  # bytes that tell what a file is
LOW = ("low", "low_freq_hz", "low_freq", "low_frequency", "low_f", "min_freq", "min_frequency", "fmin")
HIGH = ("high", "high_freq_hz", "high_freq", "high_frequency", "high_f", "max_freq", "max_frequency", "fmax")
PEAK = ("peak", "peak_score", "score", "confidence", "probability")
MEAN = ("mean", "mean_score")


def read_annotations(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    label_column: str | None = None,
    sounds: Sequence[str | os.PathLike[str]] = (),
) -> list[Annotation]:
    """Read annotations of Raven, Audacity, Kaleidoscope and BirdNET, and plain lists with path, start, end and label.

    The format is told by the content. What is unusual about a file is told by an `AudioWarning`.

    Args:
        inputs: files, and folders of them.
        label_column: the name of the column with the labels, where it is not a usual one.
        sounds: folders in which recordings are searched for by their names. By default the folder of the annotations,
            the folders in it, the one above it and the other folders in that one.

    Returns:
        In the order of the files and their rows, each once. A row without a label is left out.

    Raises:
        InputError: no such file, one that cannot be read, one without labels, or a recording that cannot be told.
        SettingsError: ``sounds`` names no folder.
    """
    recordings = Recordings(sounds)
    result: dict[Annotation, None] = {}
    for one in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        path = Path(one)
        folder_recordings = recordings.within(path) if path.is_dir() else recordings
        for file in annotation_files(path, folder_recordings) if path.is_dir() else [path]:
            result.update(dict.fromkeys(_of_file(file, label_column, folder_recordings)))
        if path.is_dir() and not result:
            raise InputError(f"There are no annotations in the folder {path}, nor in any below it.")
    return list(result)


def _of_file(path: Path, label_column: str | None, recordings: Recordings) -> Iterator[Annotation]:
    if path.suffix.lower() not in LIST_SUFFIXES:
        raise InputError(f"{path} is no file of annotations; these end in {', '.join(LIST_SUFFIXES)}.")
    table = read_list(path, label_column or True, recordings)
    column = table.columns.label
    if column is None:
        raise InputError(f"{path} has no column for labels. If there is one, name it: --label-column.")
    hertz = table.dialect.hertz({key(name) for name in table.columns.names}) if table.dialect else 1.0
    unlabelled = []
    for row in table.rows:
        if row.content is not None:
            raise InputError(f"{path} holds sounds in itself; annotations are of recordings in files.")
        labels = labels_of(table, row, column)
        if labels is None:
            unlabelled.append(row.number)
        for label in labels or ():
            edges = _scaled(number(row.values, LOW), hertz), _scaled(number(row.values, HIGH), hertz)
            scores = number(row.values, PEAK), number(row.values, MEAN)
            yield Annotation(row.path, row.start, row.end, label, *edges, *scores)
    table.left_out("which have no label", unlabelled)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def labels_of(table: SoundList, row: Row, column: str) -> list[str] | None:
    """The labels of a row of annotations: none where it says that there is nothing; None where it says nothing.

    Raises:
        InputError: a cell that holds no labels; the message names the line.
    """
    try:
        labels = [composed(label) for label in items(row.values.get(column)) if not is_missing(label)]
    except ValueError as error:
        raise InputError(f"{table.path} cannot be read: {table.place(row.number)}: {error}") from None
    if not labels:
        return None
    empty_labels = table.dialect.empty_labels if table.dialect else frozenset[str]()
    return [label for label in labels if label.lower() not in empty_labels]


def annotation_files(folder: Path, recordings: Recordings, plain: bool = True) -> list[Path]:
    """The files in a folder, and in all below it, that are annotations by what they hold; hidden ones left out.

    Args:
        folder: where the search starts.
        recordings: that annotations may be called after.
        plain: whether plain lists with path, start, end and label count.
    """
    result = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent, name)
                if path.is_file() and _is_annotation(path, recordings, plain):
                    result.append(path)
    return result


def _is_annotation(path: Path, recordings: Recordings, plain: bool) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        return path.suffix.lower() == ".txt" and recordings.named_like(path) is not None  # a track without labels
    try:
        text = decode(head)[0].lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except ValueError:
        return False
    first = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return plain and _names_times(_keys(first))
    if path.suffix.lower() == ".txt" and audacity.is_track(text):
        return True
    headers = (next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), []) for delimiter in DELIMITERS)
    return any(dialect_of(names) is not None or (plain and _names_times(names)) for names in headers)


def _keys(line: str) -> list[str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(entry) if isinstance(entry, dict) else []


def _names_times(names: Sequence[str]) -> bool:
    columns = Columns(names)
    return bool(columns.paths and columns.label and (columns.start or columns.end))
