"""One input with labels → its examples: a folder of class folders, a list, or annotations of recordings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchbeats.audio import AudioWarning
from torchbeats.data.annotations.reading import annotation_files, labels_of
from torchbeats.data.annotations.recordings import Recordings, sounds_below
from torchbeats.data.cells import are_one_hot, composed, items, word, yes_or_no
from torchbeats.data.clips import recordings_of
from torchbeats.data.columns import LABEL_COLUMNS, PATH_COLUMNS, is_missing
from torchbeats.data.example import Example
from torchbeats.data.inputs import find_audio, find_sounds
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.data.lists import Row, SoundList, read_list
from torchbeats.data.path_patterns import finder
from torchbeats.data.shards import UnreadableShard
from torchbeats.data.splits import purpose
from torchbeats.data.windows import Windows
from torchbeats.errors import InputError, quoted
from torchbeats.files import is_called_like_url, with_both_slashes


@dataclass
class LabelSource:
    """The examples of one input.

    Attributes:
        examples: in order.
        origins: of each, for messages: its path, or the line of a list.
        from_cells: whether labels are cells of a list, where NA and the like mean no label; a folder may be named so.
        several: whether a sound may have several labels, even if none here has.
        annotated: whether these are annotations of recordings.
    """

    examples: list[Example]
    origins: list[str]
    from_cells: bool = False
    several: bool = False
    annotated: bool = False


def labels_in_paths(inputs: Iterable[str | os.PathLike[str]], pattern: str) -> LabelSource:
    """The sounds that inputs name, each with the label that a regular expression finds in its path; see `finder`."""
    label_of = finder(pattern, "label")
    pieces = []
    for piece in find_sounds(inputs):
        if isinstance(piece.content, UnreadableShard):  # its name is no sound's, and has no label
            warnings.warn(f"{piece.path}: {piece.content.reason}.", AudioWarning, stacklevel=3)
        else:
            pieces.append(piece)
    if not pieces:
        raise InputError("The inputs name no sounds that can be read.")
    labels = [(label_of(piece.path),) for piece in pieces]
    examples = [
        Example(piece.path, label, piece.start, piece.end, content=piece.content)
        for piece, label in zip(pieces, labels, strict=True)
    ]
    return LabelSource(examples, [piece.path for piece in pieces])


@dataclass
class LabelReader:
    """Reads inputs with labels: folders of class folders, lists, and annotations of recordings.

    Attributes:
        labels: the column with the labels of a list; True for a usual one.
        recordings: where the recordings of annotations are searched for.
        windows: how these are cut, if they are.
    """

    labels: str | bool
    recordings: Recordings
    windows: Windows | None

    def sources(self, name: str) -> Iterator[LabelSource]:
        """The examples of an input; one source for each file where it is a folder of annotations."""
        path = Path(name)
        if path.is_dir():
            recordings = self.recordings.within(path)
            if files := annotation_files(path, recordings, plain=not _has_class_folders(path)):
                yield from (self._from_list(file, recordings) for file in files)
                return
            examples = _from_class_folders(path)
            yield LabelSource(examples, [example.path for example in examples])
        elif path.suffix.lower() in LIST_SUFFIXES:
            yield self._from_list(path, self.recordings)
        elif is_called_like_url(name):
            raise InputError(
                f"{with_both_slashes(name)} is a URL; labels are read from folders and lists of this machine. A list "
                "may hold the URLs of sounds."
            )
        else:
            raise InputError(f"{name} is neither a folder of class folders nor a list ({', '.join(LIST_SUFFIXES)}).")

    def _from_list(self, path: Path, recordings: Recordings) -> LabelSource:
        sounds = read_list(path, self.labels, recordings)
        source = _from_annotations(sounds) if sounds.dialect is not None else _from_rows(sounds)
        timed = any(example.start or example.end is not None for example in source.examples)
        if self.windows is None or not (source.annotated or (self.windows.plain_lists and timed)):
            return source
        annotated = [row.path for row in sounds.rows] if sounds.recording is None else [sounds.recording]
        examples, unused = self.windows.cut(source.examples, annotated)
        if unused:
            names = quoted(dict.fromkeys(f"{stretch.path} at {stretch.start:g} s" for stretch in unused), 3)
            sounds.note(f"{len(unused):,} labelled stretches are in no window of a recording and not used: {names}.")
        several = source.several or any(len(example.labels) != 1 for example in examples)
        origins = [f"{example.path} from {example.start:g} s" for example in examples]
        return LabelSource(examples, origins, source.from_cells, several, True)


def _from_annotations(sounds: SoundList) -> LabelSource:
    """The labelled stretches of annotations; rows without a label are left out, with a note."""
    assert sounds.columns.label is not None
    labels = [labels_of(sounds, row, sounds.columns.label) for row in sounds.rows]
    sounds.left_out(
        "which have no label", [row.number for row, words in zip(sounds.rows, labels, strict=True) if words is None]
    )
    rows = [(row, words) for row, words in zip(sounds.rows, labels, strict=True) if words]
    examples = [
        Example(row.path, tuple(words), row.start, row.end, content=None, **_partitions_of(sounds, row))
        for row, words in rows
    ]
    origins = [f"{sounds.place(row.number)} of {sounds.path}" for row, _ in rows]
    return LabelSource(examples, origins, from_cells=True, annotated=True)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_class_folders(folder: Path) -> bool:
    """Whether there are folders in a folder, with sounds in each."""
    names = _folders(folder)
    return bool(names) and all(any(sounds_below(folder / name)) for name in names)


def _from_class_folders(folder: Path) -> list[Example]:
    names = _folders(folder)
    splits = [name for name in names if purpose(name) and _folders(folder / name)]
    if names and splits == names:
        split = [(purpose(name), example) for name in names for example in _from_class_folders(folder / name)]
        return [example._replace(split=name) for name, example in split]
    if splits:
        classes = [name for name in names if name not in splits]
        warnings.warn(
            f"{folder}: the folders {quoted(splits)} are taken as classes, not as splits, as there is also "
            f"{quoted(classes)}.",
            AudioWarning,
            stacklevel=2,
        )
    if not names:
        raise InputError(
            f"{folder} has no folders in it; every class needs one of its own, named after it, with its sounds."
        )
    examples = []
    for name in names:
        try:
            examples += [Example(path, (composed(name),)) for path in find_audio([folder / name])]
        except InputError as error:
            raise InputError(f"The class {name!r} has no sounds: {error}") from error
    if recordings := recordings_of(folder):  # clips of one recording sound alike
        below = [Path(os.path.relpath(example.path, folder)).as_posix() for example in examples]
        examples = [
            example._replace(group=recordings.get(name, example.path))
            for name, example in zip(below, examples, strict=True)
        ]
    return examples


def _from_rows(sounds: SoundList) -> LabelSource:
    if not sounds.rows:
        raise InputError(f"The list {sounds.path} has no rows.")
    column, several = sounds.columns.label, False
    if column is not None:
        labels = _labels_of(sounds, column)
    elif one_hot := _one_hot_columns(sounds):
        labels, several = [[name for name in one_hot if yes_or_no(row.values.get(name))] for row in sounds.rows], True
        sounds.note(f"the columns of noughts and ones are read as {len(one_hot):,} classes: {quoted(one_hot)}.")
    else:
        raise InputError(
            f"The list {sounds.path} needs a column called {' or '.join(LABEL_COLUMNS[:6])} beside "
            f"{' or '.join(PATH_COLUMNS[:6])}, or a column of noughts and ones for each class."
        )
    examples = []
    for row, words in zip(sounds.rows, labels, strict=True):
        partitions = _partitions_of(sounds, row)
        examples.append(Example(row.path, tuple(words), row.start, row.end, content=row.content, **partitions))
    origins = [f"{sounds.place(row.number)} of {sounds.path}" for row in sounds.rows]
    return LabelSource(examples, origins, from_cells=True, several=several)


def _partitions_of(sounds: SoundList, row: Row) -> dict[str, str | None]:
    """The split, the fold and the group of a row, where its list has such columns."""
    words = {kind: word(row.values.get(name)) for kind, name in sounds.columns.partitions.items()}
    partitions = {kind: None if is_missing(value) else value for kind, value in words.items()}
    if split := partitions.get("split"):
        partitions["split"] = purpose(split) or split
    return partitions


def _labels_of(sounds: SoundList, column: str) -> list[list[str]]:
    """The labels of each row, as they are written."""
    labels = []
    for row in sounds.rows:
        try:
            labels.append(items(row.values.get(column)))
        except ValueError as error:
            raise InputError(f"The list {sounds.path} cannot be read: {sounds.place(row.number)}: {error}") from None
    if are_one_hot(labels):
        raise InputError(
            f"The column {column!r} of {sounds.path} holds lists of noughts and ones (one-hot), as in "
            f"{sounds.place(sounds.rows[0].number)}; what the classes are called it does not say. Write the names of "
            "the classes instead."
        )
    names = sounds.label_names.get(column)
    if names:
        numbered = {str(number): composed(name) for number, name in enumerate(names)}
        labels = [[numbered.get(label, label) for label in words] for words in labels]
    return labels


def _one_hot_columns(sounds: SoundList) -> list[str]:
    """The columns of a list without labels that have a nought or a one in every row; none unless there are two."""
    names = [
        name
        for name in sounds.columns.unused
        if all(yes_or_no(row.values.get(name)) is not None for row in sounds.rows)
        and not all(is_missing(row.values.get(name)) for row in sounds.rows)
    ]
    return names if len(names) > 1 else []
