"""Sounds with labels: folders named after classes, or a list that says of each sound what it is."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchbeats import audio
from torchbeats.audio import AudioWarning
from torchbeats.config import PROBLEM_TYPES
from torchbeats.data.annotations.reading import annotation_files, labels_of
from torchbeats.data.annotations.recordings import Recordings, sounds_below
from torchbeats.data.cells import are_one_hot, canonical_numbers, composed, items, plain_number, word, yes_or_no
from torchbeats.data.columns import LABEL_COLUMNS, PARTITION_COLUMNS, PATH_COLUMNS, is_missing
from torchbeats.data.example import Example
from torchbeats.data.inputs import find_audio
from torchbeats.data.lists import LIST_SUFFIXES, Row, SoundList, read_list
from torchbeats.data.pieces import impossible
from torchbeats.data.splits import purpose
from torchbeats.data.windows import Windows
from torchbeats.errors import AudioError, InputError, quoted, some_of


@dataclass
class Labelled:
    """Examples and their classes.

    Attributes:
        examples: in the order of the inputs.
        classes: every label, sorted.
        problem_type: "single_label", or "multi_label" where an example has none or several.
    """

    examples: list[Example]
    classes: list[str]
    problem_type: str
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._index = {name: number for number, name in enumerate(self.classes)}

    def targets(self) -> np.ndarray[Any, Any]:
        """``(N,)`` int64, the class of each; or ``(N, classes)`` float32, one where it belongs, if multi-label."""
        if self.problem_type == "single_label":
            return np.array([self._index[example.labels[0]] for example in self.examples], np.int64)
        targets = np.zeros((len(self.examples), len(self.classes)), np.float32)
        for row, example in zip(targets, self.examples, strict=True):
            row[[self._index[label] for label in example.labels]] = 1
        return targets

    def counts(self) -> dict[str, int]:
        """Examples of each class."""
        numbers = Counter(label for example in self.examples for label in example.labels)
        return {name: numbers[name] for name in self.classes}

    def subset(self, chosen: Iterable[int]) -> Labelled:
        """Some of the examples, with the same classes."""
        return Labelled([self.examples[i] for i in chosen], self.classes, self.problem_type)

    def without(self, left_out: Iterable[int]) -> Labelled:
        """The other examples, likewise."""
        out = set(left_out)
        return self.subset(i for i in range(len(self.examples)) if i not in out)

    def there(self) -> tuple[Labelled, list[str]]:
        """The examples whose files are there, and the paths of those whose are not."""
        missing = {example.path for example in self.examples if not _is_there(example)}
        inside = (i for i, example in enumerate(self.examples) if example.path not in missing)
        return self.subset(inside), sorted(missing)

    def within_files(self) -> tuple[Labelled, list[str]]:
        """The examples that their files can have, and what is wrong with the others.

        Of a piece that a list names, its file's header is asked; where that does not tell, the piece stays.

        Raises:
            InputError: none is left.
        """
        lengths: dict[str, float | None] = {}
        wrong: dict[int, str] = {}
        for i, example in enumerate(self.examples):
            if not example.start and example.end is None:
                continue
            if example.path not in lengths:
                lengths[example.path] = _seconds(example)
            if reason := impossible(example.start, example.end, lengths[example.path]):
                wrong[i] = f"{example.path}: {reason}"
        if len(wrong) == len(self.examples):
            raise InputError(f"No piece is in its file. The first, {wrong[0]}.")
        return self.without(wrong), list(wrong.values())

    def where(self, split: str | None = None, fold: str | None = None) -> Labelled:
        """The examples of a split, of a fold, or of both.

        Raises:
            InputError: there are none; the message says what there is.
        """
        chosen = range(len(self.examples))
        for name, wanted in (("split", split and (purpose(split) or split)), ("fold", fold)):
            if wanted is None:
                continue
            values = {i: getattr(self.examples[i], name) for i in chosen}
            chosen = [i for i in chosen if values[i] == wanted]  # type: ignore[assignment]
            if not chosen:
                known = sorted({value for value in values.values() if value is not None})
                said = f"there are {quoted(known)}" if known else f"no example says its {name}"
                asked = split if name == "split" else fold
                raise InputError(f"There is no example in the {name} {asked!r}; {said}.")
        return self.subset(chosen)


def read_labelled(
    inputs: Sequence[str | os.PathLike[str]],
    problem_type: str | None = None,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    *,
    label_column: str | None = None,
    sounds: Sequence[str | os.PathLike[str]] = (),
    windows: Windows | None = None,
) -> Labelled:
    """Find labelled sounds. What a reader of them should know is told by an `AudioWarning`.

    Args:
        inputs: folders, in which every sound belongs to the class that the folder below them is named after; lists
            with a path, one or several labels, and maybe start, end or duration, split, fold, group; or with a column
            of noughts and ones for each class. Folders named train, valid, test and so on, with class folders in them,
            are splits. Or annotations of recordings, as Raven, Audacity, Kaleidoscope and BirdNET write them, and
            folders with such files and maybe the recordings.
        problem_type: "single_label" or "multi_label"; by what the labels are where not given. In a single-label problem
            sounds without a label are left out. In a multi-label one, a sound that is named more than once, with the
            same start and end, has all of those labels.
        classes: those that a model has; where not given, all labels that there are.
        aliases: other names of classes, such as AudioSet ids.
        label_column: the name of the column with the labels, where it is not a usual one.
        sounds: folders in which recordings are searched for by their names; see `Recordings`.
        windows: how annotated recordings are cut into windows, each an example with the labels of the stretches in it.
            Where not given, a stretch is an example by itself.

    Raises:
        InputError: no examples, a list without the columns, a sound with several labels where each must
            have one, in two splits or two folds at once, a label that is none of ``classes``, or files of which not
            one is there.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"The problem type must be one of {', '.join(PROBLEM_TYPES)}, not {problem_type!r}.")
    # One letter may be one code point or two; the model's way of writing wins, and ours is the composed one.
    called = {composed(name): name for name in classes or ()}
    called.update({composed(other): name for other, name in (aliases or {}).items() if composed(other) not in called})
    reading = _Reading(label_column or True, Recordings(sounds), windows)
    sources = [source for one in inputs for source in reading.sources(os.fspath(one))]
    named = _Names(called, (label for source in sources for example in source.examples for label in example.labels))
    examples: dict[Hashable, Example] = {}
    places: dict[Hashable, str] = {}
    conflict = None
    for source in sources:
        for example, place in zip(source.examples, source.origins, strict=True):
            example = example._replace(labels=named.of(example.labels, source.words))
            this = _identity(example)
            if this not in examples:
                examples[this], places[this] = example, place
                continue
            before = examples[this]
            if source.annotated and before.labels != example.labels:
                source.several = True  # one stretch, in which there are several
            elif (
                conflict is None and len(before.labels) == len(example.labels) == 1 and before.labels != example.labels
            ):
                conflict = (
                    f"{before.path} has the label {before.labels[0]!r} ({places[this]}) and {example.labels[0]!r} "
                    f"({place}). Name the sound once, or make it a multi-label problem."
                )
            examples[this] = _both(before, example)
        several = any(len(example.labels) > 1 for example in source.examples)
        source.several = source.several or several
    kept = list(examples.values())
    if not kept:
        raise InputError("The inputs name no sounds.")
    if not any(_is_there(example) for example in kept):
        raise InputError(f"None of the {len(kept):,} sounds is there; the first would be {kept[0].path}.")
    several = problem_type is None and any(source.several for source in sources)
    kind = problem_type or ("multi_label" if several else "single_label")
    if conflict is not None and kind == "single_label":
        raise InputError(conflict)
    result = sorted({label for example in kept for label in example.labels})
    if not result:
        raise InputError(f"Not one of the {len(kept):,} sounds has a label.")
    if classes is not None and (unknown := [label for label in result if label not in set(classes)]):
        raise InputError(f"There is no class called {quoted(unknown)}; there are {quoted(list(classes))}.")
    named.tell()
    if kind == "single_label":
        kept = _with_one_label(examples, places)
    return Labelled(kept, result if classes is None else list(classes), kind)


def _have_one(*examples: Example) -> bool:
    return all(len(example.labels) == 1 for example in examples)


def _with_one_label(examples: Mapping[Hashable, Example], places: Mapping[Hashable, str]) -> list[Example]:
    """Those with a label. The others are named."""
    if odd := next((example for example in examples.values() if len(example.labels) > 1), None):
        said = f"the labels {', '.join(odd.labels)}"
        raise InputError(f"Each sound must have one label; {odd.path} has {said}. Or make it a multi-label problem.")
    without = [places[this] for this, example in examples.items() if not example.labels]
    if without:
        warnings.warn(
            f"{len(without):,} of {len(examples):,} sounds are left out, as they have no label and this is no "
            f"multi-label problem: {some_of(without, 5)}.",
            AudioWarning,
            stacklevel=3,
        )
    return [example for example in examples.values() if example.labels]


@dataclass
class _Source:
    """The examples of one input.

    Attributes:
        examples: in order.
        origins: of each, for messages: its path, or the line of a list.
        words: whether labels are cells of a list, in which NA and the like are none; a folder may be called so.
        several: whether a sound may have several labels, whatever these have.
        annotated: whether these are annotations of recordings.
    """

    examples: list[Example]
    origins: list[str]
    words: bool = False
    several: bool = False
    annotated: bool = False


class _Names:
    """Labels as they are written → classes.

    Args:
        called: what the classes of a model may be called, and their names.
        labels: all that there are.
    """

    def __init__(self, called: Mapping[str, str], labels: Iterable[str]) -> None:
        self.called = called
        written = {label for label in labels if label in called or not is_missing(label)}
        unknown = written - set(called)
        self.ways = {} if called else canonical_numbers(written)
        self.all_numbers = all(plain_number(label) for label in written)
        plain = {label: number for label in unknown if (number := plain_number(label))}
        self.numbers = {label: called[number] for label, number in plain.items() if number in called}
        if self.ways and self.all_numbers:
            self.numbers = plain

    def of(self, labels: Iterable[str], words: bool) -> tuple[str, ...]:
        """The classes of a sound, each once."""
        known = (
            self.called.get(label) or self.numbers.get(label, label)
            for label in labels
            if label in self.called or not (words and is_missing(label))
        )
        return tuple(dict.fromkeys(known))

    def tell(self) -> None:
        """Name the numbers that are written in several ways."""
        if self.ways:
            ways = "; ".join(", ".join(labels) for labels in list(self.ways.values())[:5])
            said = "one class each" if self.all_numbers else "different classes, as not all labels are numbers"
            warnings.warn(f"Numbers written in several ways are taken as {said}: {ways}.", AudioWarning, stacklevel=3)


def _identity(example: Example) -> Hashable:
    """What is the same for the same sound, by whatever name it is called."""
    if example.content is not None:
        return example.content[:4], example.start, example.end
    try:
        about = os.stat(example.path)
        return (about.st_dev, about.st_ino), example.start, example.end
    except (OSError, ValueError):
        return os.path.abspath(example.path), example.start, example.end


def _is_there(example: Example) -> bool:
    return example.content is not None or os.path.exists(example.path)


def _seconds(example: Example) -> float | None:
    """Of an example's file, where its header tells."""
    if example.content is not None:
        return None
    try:
        return audio.duration(example.path)
    except AudioError:
        return None  # that it cannot be read is found out by reading it


@dataclass
class _Reading:
    """How inputs are read.

    Attributes:
        labels: the column with the labels of a list; True for a usual one.
        recordings: where the recordings of annotations are searched for.
        windows: how these are cut, if they are.
    """

    labels: str | bool
    recordings: Recordings
    windows: Windows | None

    def sources(self, name: str) -> Iterator[_Source]:
        """What an input gives: several where it is a folder of annotations."""
        path = Path(name)
        if path.is_dir():
            recordings = self.recordings.within(path)
            if files := annotation_files(path, recordings, plain=not _has_class_folders(path)):
                yield from (self._of_list(file, recordings) for file in files)
                return
            examples = _in_class_folders(path)
            yield _Source(examples, [example.path for example in examples])
        elif path.suffix.lower() in LIST_SUFFIXES:
            yield self._of_list(path, self.recordings)
        else:
            raise InputError(f"{name} is neither a folder of class folders nor a list ({', '.join(LIST_SUFFIXES)}).")

    def _of_list(self, path: Path, recordings: Recordings) -> _Source:
        sounds = read_list(path, self.labels, recordings)
        source = _in_annotations(sounds) if sounds.dialect is not None else _in_list(sounds)
        timed = any(example.start or example.end is not None for example in source.examples)
        if self.windows is None or not (source.annotated or (self.windows.plain_lists and timed)):
            return source
        annotated = [row.path for row in sounds.rows] if sounds.recording is None else [sounds.recording]
        examples, unused = self.windows.of(source.examples, annotated)
        if unused:
            names = quoted(dict.fromkeys(f"{one.path} at {one.start:g} s" for one in unused), 3)
            sounds.note(f"{len(unused):,} labelled stretches are in no window, and are not used: {names}.")
        several = source.several or any(len(example.labels) != 1 for example in examples)
        places = [f"{example.path} from {example.start:g} s" for example in examples]
        return _Source(examples, places, source.words, several, True)


def _in_annotations(sounds: SoundList) -> _Source:
    """The labelled stretches; a row without a label says nothing."""
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
    places = [f"{sounds.place(row.number)} of {sounds.path}" for row, _ in rows]
    return _Source(examples, places, words=True, annotated=True)


def _both(before: Example, example: Example) -> Example:
    """One example of two that are the same sound."""
    places = {}
    for name in PARTITION_COLUMNS:
        earlier, later = getattr(before, name), getattr(example, name)
        if earlier is not None and later is not None and earlier != later:
            raise InputError(f"{example.path} is in the {name} {earlier!r} and in {later!r}; it can be in one only.")
        places[name] = earlier if later is None else later
    return before._replace(labels=tuple(dict.fromkeys(before.labels + example.labels)), **places)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_class_folders(folder: Path) -> bool:
    """Whether there are folders in a folder, with sounds in each."""
    names = _folders(folder)
    return bool(names) and all(any(sounds_below(folder / name)) for name in names)


def _in_class_folders(folder: Path) -> list[Example]:
    names = _folders(folder)
    splits = [name for name in names if purpose(name) and _folders(folder / name)]
    if names and splits == names:
        split = [(purpose(name), example) for name in names for example in _in_class_folders(folder / name)]
        return [example._replace(split=name) for name, example in split]
    if splits:
        others = [name for name in names if name not in splits]
        warnings.warn(
            f"{folder}: the folders {quoted(splits)} are taken as classes, not as splits, as there is also "
            f"{quoted(others)}.",
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
    return examples


def _in_list(sounds: SoundList) -> _Source:
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
        about = _partitions_of(sounds, row)
        examples.append(Example(row.path, tuple(words), row.start, row.end, content=row.content, **about))
    places = [f"{sounds.place(row.number)} of {sounds.path}" for row in sounds.rows]
    return _Source(examples, places, words=True, several=several)


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
    names = sounds.class_names.get(column)
    if names:
        numbered = {str(number): composed(name) for number, name in enumerate(names)}
        labels = [[numbered.get(label, label) for label in words] for words in labels]
    return labels


def _one_hot_columns(sounds: SoundList) -> list[str]:
    """The columns of a list without labels that have a nought or a one in every row; none unless there are two."""
    names = [
        name
        for name in sounds.columns.others
        if all(yes_or_no(row.values.get(name)) is not None for row in sounds.rows)
        and not all(is_missing(row.values.get(name)) for row in sounds.rows)
    ]
    return names if len(names) > 1 else []
