"""Sounds with labels: folders named after classes, or a list that says of each sound what it is."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchbeats.config import PROBLEM_TYPES
from torchbeats.data.inputs import LIST_SUFFIXES, PATH_COLUMNS, find_audio, read_list
from torchbeats.errors import InputError, quoted

LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "classes")  # of a list, the first that is there
SEPARATORS = ";|"  # between the labels of one sound, in a list that is text
SPLITS = ("train", "valid", "validation", "val", "dev", "test", "eval")  # folders of class folders, not classes
_PLACES = ("split", "fold", "group")  # a sound is in one of each
_OTHER_COLUMNS = ("start", "end", *_PLACES)


class Example(NamedTuple):
    """A sound, or a piece of one, and what it is.

    Attributes:
        path: of the file.
        labels: names of its classes.
        start: of the piece, in seconds.
        end: of the piece, in seconds; None for the end of the file.
        split: "train", "test" or the like, where the list says so.
        fold: of a cross-validation, likewise.
        group: what a split should keep together, a speaker or a recording, likewise.
    """

    path: str
    labels: tuple[str, ...]
    start: float = 0.0
    end: float | None = None
    split: str | None = None
    fold: str | None = None
    group: str | None = None


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
        found = Counter(label for example in self.examples for label in example.labels)
        return {name: found[name] for name in self.classes}

    def subset(self, chosen: Iterable[int]) -> Labelled:
        """Some of the examples, with the same classes."""
        return Labelled([self.examples[i] for i in chosen], self.classes, self.problem_type)

    def without(self, left_out: Iterable[int]) -> Labelled:
        """The other examples, likewise."""
        out = set(left_out)
        return self.subset(i for i in range(len(self.examples)) if i not in out)

    def there(self) -> tuple[Labelled, list[str]]:
        """The examples whose files are there, and the paths of those whose are not."""
        missing = {example.path for example in self.examples if not os.path.exists(example.path)}
        inside = (i for i, example in enumerate(self.examples) if example.path not in missing)
        return self.subset(inside), sorted(missing)

    def where(self, split: str | None = None, fold: str | None = None) -> Labelled:
        """The examples of a split, of a fold, or of both.

        Raises:
            InputError: there are none; the message says what there is.
        """
        chosen = range(len(self.examples))
        for name, wanted in (("split", split), ("fold", fold)):
            if wanted is None:
                continue
            there = {i: getattr(self.examples[i], name) for i in chosen}
            chosen = [i for i in chosen if there[i] == wanted]  # type: ignore[assignment]
            if not chosen:
                known = sorted({value for value in there.values() if value is not None})
                said = f"there are {quoted(known)}" if known else f"no example says its {name}"
                raise InputError(f"There is no example in the {name} {wanted!r}; {said}.")
        return self.subset(chosen)


def read_labelled(
    inputs: Sequence[str | os.PathLike[str]],
    problem_type: str | None = None,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Labelled:
    """Find labelled sounds.

    Args:
        inputs: folders, in which every sound belongs to the class that the folder below them is named after; lists
            (.csv, .jsonl, .parquet) with a path, one or several labels, and maybe start, end, split, fold, group.
            A sound that a list names more than once, with the same start and end, has all of those labels. Folders
            named train, valid, test and so on, with class folders in them, are splits.
        problem_type: "single_label" or "multi_label"; by what the labels are where not given.
        classes: those that a model has; where not given, all labels that there are.
        aliases: other names of classes, such as AudioSet ids.

    Raises:
        InputError: no examples, a list without the columns, a sound without a label or with several where each must
            have one, in two splits or two folds at once, a label that is none of ``classes``, or files of which not
            one is there.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"The problem type must be one of {', '.join(PROBLEM_TYPES)}, not {problem_type!r}.")
    # One letter may be one code point or two; the model's way of writing wins, and ours is the composed one.
    called = {_composed(name): name for name in classes or ()}
    called.update({_composed(other): name for other, name in (aliases or {}).items() if _composed(other) not in called})
    merged: dict[tuple[str, float, float | None], Example] = {}
    for given in inputs:
        for example in _examples(os.fspath(given)):
            labels = (called.get(label, label) for label in example.labels)
            example = example._replace(labels=tuple(dict.fromkeys(labels)))
            key = (os.path.abspath(example.path), example.start, example.end)
            merged[key] = _both(merged[key], example) if key in merged else example
    examples = list(merged.values())
    if not examples:
        raise InputError("The inputs name no sounds.")
    if not any(os.path.exists(example.path) for example in examples):
        raise InputError(f"None of the {len(examples):,} sounds is there; the first would be {examples[0].path}.")
    found = sorted({label for example in examples for label in example.labels})
    if not found:
        raise InputError(f"Not one of the {len(examples):,} sounds has a label.")
    if classes is not None and (unknown := [label for label in found if label not in set(classes)]):
        raise InputError(f"There is no class called {quoted(unknown)}; there are {quoted(list(classes))}.")
    odd = next((example for example in examples if len(example.labels) != 1), None)
    if problem_type == "single_label" and odd is not None:
        said = f"the labels {', '.join(odd.labels)}" if odd.labels else "no label"
        raise InputError(f"Each sound must have one label; {odd.path} has {said}. Or make it a multi-label problem.")
    kind = problem_type or ("single_label" if odd is None else "multi_label")
    return Labelled(examples, found if classes is None else list(classes), kind)


def _examples(given: str) -> Iterable[Example]:
    if os.path.isdir(given):
        return _in_class_folders(Path(given))
    if Path(given).suffix.lower() in LIST_SUFFIXES:
        return _in_list(Path(given))
    raise InputError(f"{given} is neither a folder of class folders nor a list ({', '.join(LIST_SUFFIXES)}).")


def _both(before: Example, example: Example) -> Example:
    """One example of two that are the same sound."""
    places = {}
    for name in _PLACES:
        there, here = getattr(before, name), getattr(example, name)
        if there is not None and here is not None and there != here:
            raise InputError(f"{example.path} is in the {name} {there!r} and in {here!r}; it can be in one only.")
        places[name] = there if here is None else here
    return before._replace(labels=tuple(dict.fromkeys(before.labels + example.labels)), **places)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _in_class_folders(folder: Path) -> list[Example]:
    names = _folders(folder)
    if names and all(name.lower() in SPLITS and _folders(folder / name) for name in names):
        split = [(name.lower(), example) for name in names for example in _in_class_folders(folder / name)]
        return [example._replace(split=name) for name, example in split]
    if not names:
        raise InputError(
            f"{folder} has no folders in it; every class needs one of its own, named after it, with its sounds."
        )
    examples = []
    for name in names:
        try:
            examples += [Example(path, (_composed(name),)) for path in find_audio([folder / name])]
        except InputError as error:
            raise InputError(f"The class {name!r} has no sounds: {error}") from error
    return examples


def _in_list(path: Path) -> list[Example]:
    rows = read_list(path, (*LABEL_COLUMNS, *_OTHER_COLUMNS))
    if not rows:
        raise InputError(f"The list {path} has no rows.")
    named = {name for row in rows for name in row}
    column = next((name for name in LABEL_COLUMNS if name in named), None)
    if column is None:
        raise InputError(
            f"The list {path} needs a column called {' or '.join(LABEL_COLUMNS)} beside {' or '.join(PATH_COLUMNS)}."
        )
    return [_example(path, number, row, column) for number, row in enumerate(rows, start=1)]


def _example(path: Path, number: int, row: dict[str, Any], column: str) -> Example:
    try:
        start, end = _seconds(row.get("start")), _seconds(row.get("end"))
    except ValueError:
        raise InputError(
            f"Row {number} of {path} must have start and end in seconds, not {row.get('start')!r} and "
            f"{row.get('end')!r}."
        ) from None
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise InputError(f"Row {number} of {path} ends at {end} s, but starts at {start or 0} s.")
    kept = {name: _word(row.get(name)) for name in _PLACES}
    return Example(row["path"], _labels(row.get(column)), start or 0.0, end, **kept)


def _labels(value: Any) -> tuple[str, ...]:
    """The labels in a list's cell: text with separators, a JSON array, or a list already."""
    if value is None:
        return ()
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            try:
                value = json.loads(text)
            except ValueError:
                value = None
        if isinstance(value, str) or value is None:
            for separator in SEPARATORS[1:]:
                text = text.replace(separator, SEPARATORS[0])
            value = text.split(SEPARATORS[0])
    items = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    words = (_word(item) for item in items)
    return tuple(dict.fromkeys(word for word in words if word))


def _word(value: Any) -> str | None:
    """A cell as text; None where it is empty. 3.0, as a table with gaps has it, is 3."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _composed(str(value)).strip() or None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _seconds(value: Any) -> float | None:
    word = _word(value)
    seconds = None if word is None else float(word)
    if seconds is not None and not np.isfinite(seconds):
        raise ValueError(word)
    return seconds
