"""Sounds with labels: folders named after classes, or a list that says of each sound what it is."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchbeats import audio
from torchbeats.audio import AudioWarning
from torchbeats.config import PROBLEM_TYPES
from torchbeats.data.annotations.recordings import Recordings
from torchbeats.data.cells import composed
from torchbeats.data.class_names import ClassNames
from torchbeats.data.columns import PARTITION_COLUMNS
from torchbeats.data.example import Example
from torchbeats.data.label_sources import LabelReader, labels_in_paths
from torchbeats.data.pieces import impossible
from torchbeats.data.splits import purpose
from torchbeats.data.windows import Windows
from torchbeats.decoders import shard_of
from torchbeats.errors import AudioError, InputError, quoted, some_of
from torchbeats.remote import is_url


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

    def subset(self, indices: Iterable[int]) -> Labelled:
        """Some of the examples, with the same classes."""
        return Labelled([self.examples[i] for i in indices], self.classes, self.problem_type)

    def without(self, indices: Iterable[int]) -> Labelled:
        """All examples but these, with the same classes."""
        out = set(indices)
        return self.subset(i for i in range(len(self.examples)) if i not in out)

    def existing(self) -> tuple[Labelled, list[str]]:
        """The examples whose files exist, and the paths of the files that do not."""
        missing = {example.path for example in self.examples if not _exists(example)}
        existing = (i for i, example in enumerate(self.examples) if example.path not in missing)
        return self.subset(existing), sorted(missing)

    def within_files(self) -> tuple[Labelled, list[str]]:
        """The examples whose times lie within their files, and a message for each of the others.

        The length is that in the file's header; where the header does not tell, the example stays.

        Raises:
            InputError: none does.
        """
        lengths: dict[str, float | None] = {}
        messages: dict[int, str] = {}
        for i, example in enumerate(self.examples):
            if not example.start and example.end is None:
                continue
            if example.path not in lengths:
                lengths[example.path] = _seconds(example)
            if reason := impossible(example.start, example.end, lengths[example.path]):
                messages[i] = f"{example.path}: {reason}"
        if len(messages) == len(self.examples):
            raise InputError(f"No piece is in its file. The first, {messages[0]}.")
        return self.without(messages), list(messages.values())

    def select(self, split: str | None = None, fold: str | None = None) -> Labelled:
        """The examples of a split, of a fold, or of both.

        Raises:
            InputError: there are none; the message names the splits, or folds, that there are.
        """
        indices = list(range(len(self.examples)))
        for name, value in (("split", split and (purpose(split) or split)), ("fold", fold)):
            if value is None:
                continue
            values = {i: getattr(self.examples[i], name) for i in indices}
            indices = [i for i in indices if values[i] == value]
            if not indices:
                names = sorted({str(other) for other in values.values() if other is not None})
                choice = f"there are {quoted(names)}" if names else f"no example says its {name}"
                requested = split if name == "split" else fold
                raise InputError(f"There is no example in the {name} {requested!r}; {choice}.")
        return self.subset(indices)


def read_labelled(
    inputs: Sequence[str | os.PathLike[str]],
    problem_type: str | None = None,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    *,
    label_column: str | None = None,
    label_from: str | None = None,
    sounds: Sequence[str | os.PathLike[str]] = (),
    windows: Windows | None = None,
) -> Labelled:
    """Find labelled sounds. An `AudioWarning` tells what is unusual about them.

    Args:
        inputs: folders, in which every sound belongs to the class that the folder below them is named after; lists
            with a path, one or several labels, and maybe start, end or duration, split, fold, group; or with a column
            of noughts and ones for each class. Folders named train, valid, test and so on, with class folders in them,
            are splits. Or annotations of recordings, as Raven, Audacity, Kaleidoscope and BirdNET write them, and
            folders with such files and maybe the recordings.
        problem_type: "single_label" or "multi_label"; by the labels where not given. In a single-label problem
            sounds without a label are left out. In a multi-label one, a sound that is named more than once, with the
            same start and end, has all of those labels.
        classes: of a model; where not given, all labels of the inputs.
        aliases: other names of classes, such as AudioSet ids.
        label_column: the name of the column with the labels, where it is not a usual one.
        label_from: a regular expression whose first group, in a sound's path, is its label; then the inputs are any
            sounds, as for `find_sounds`.
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
    # One letter may be one code point or two; the model's way of writing wins, otherwise the composed one is taken.
    class_by_name = {composed(name): name for name in classes or ()}
    class_by_name.update(
        {composed(alias): name for alias, name in (aliases or {}).items() if composed(alias) not in class_by_name}
    )
    reader = LabelReader(label_column or True, Recordings(sounds), windows)
    if label_from is None:
        sources = [source for path in inputs for source in reader.sources(os.fspath(path))]
    else:
        sources = [labels_in_paths(inputs, label_from)]
    labels = (label for source in sources for example in source.examples for label in example.labels)
    names = ClassNames(class_by_name, labels)
    examples: dict[Hashable, Example] = {}
    origins: dict[Hashable, str] = {}
    conflict = None
    for source in sources:
        for example, origin in zip(source.examples, source.origins, strict=True):
            example = example._replace(labels=names.classes_of(example.labels, source.from_cells))
            identity = _identity(example)
            if identity not in examples:
                examples[identity], origins[identity] = example, origin
                continue
            earlier = examples[identity]
            if source.annotated and earlier.labels != example.labels:
                source.several = True  # the same stretch twice, with a label each
            elif (
                conflict is None
                and len(earlier.labels) == len(example.labels) == 1
                and earlier.labels != example.labels
            ):
                conflict = (
                    f"{earlier.path} has the label {earlier.labels[0]!r} ({origins[identity]}) and "
                    f"{example.labels[0]!r} ({origin}). Name the sound once, or make it a multi-label problem."
                )
            examples[identity] = _merged(earlier, example)
        source.several = source.several or any(len(example.labels) > 1 for example in source.examples)
    distinct = list(examples.values())
    if not distinct:
        raise InputError("The inputs name no sounds.")
    if not any(_exists(example) for example in distinct):
        raise InputError(f"None of the {len(distinct):,} sounds is there; the first would be {distinct[0].path}.")
    several = problem_type is None and any(source.several for source in sources)
    kind = problem_type or ("multi_label" if several else "single_label")
    if conflict is not None and kind == "single_label":
        raise InputError(conflict)
    result = sorted({label for example in distinct for label in example.labels})
    if not result:
        raise InputError(f"Not one of the {len(distinct):,} sounds has a label.")
    if classes is not None and (unknown := [label for label in result if label not in set(classes)]):
        raise InputError(f"There is no class called {quoted(unknown)}; there are {quoted(list(classes))}.")
    names.warn_of_spellings()
    if kind == "single_label":
        distinct = _with_one_label(examples, origins)
    return Labelled(distinct, result if classes is None else list(classes), kind)


def _with_one_label(examples: Mapping[Hashable, Example], origins: Mapping[Hashable, str]) -> list[Example]:
    """Those with a label; a warning names the others."""
    if ambiguous := next((example for example in examples.values() if len(example.labels) > 1), None):
        label_list = f"the labels {', '.join(ambiguous.labels)}"
        raise InputError(
            f"Each sound must have one label; {ambiguous.path} has {label_list}. Or make it a multi-label problem."
        )
    unlabelled = [origins[identity] for identity, example in examples.items() if not example.labels]
    if unlabelled:
        warnings.warn(
            f"{len(unlabelled):,} of {len(examples):,} sounds are left out, as they have no label and this is no "
            f"multi-label problem: {some_of(unlabelled, 5)}.",
            AudioWarning,
            stacklevel=3,
        )
    return [example for example in examples.values() if example.labels]


def _identity(example: Example) -> Hashable:
    """Equal for two names of the same piece of the same file."""
    if example.content is not None:
        return example.content[:4], example.start, example.end
    try:
        about = os.stat(example.path)
        file: Hashable = (about.st_dev, about.st_ino) if about.st_ino else os.path.realpath(example.path)
        return file, example.start, example.end
    except (OSError, ValueError):
        return os.path.abspath(example.path), example.start, example.end


def _exists(example: Example) -> bool:
    if example.content is not None or is_url(example.path):
        return True
    return os.path.exists(shard_of(example.path) or example.path)


def _seconds(example: Example) -> float | None:
    """The length of an example's file, where its header tells."""
    if example.content is not None:
        return None
    try:
        return audio.duration(example.path)
    except AudioError:
        return None  # reading it will report that


def _merged(first: Example, second: Example) -> Example:
    """One example of two that are the same sound."""
    partitions = {}
    for name in PARTITION_COLUMNS:
        earlier, later = getattr(first, name), getattr(second, name)
        if earlier is not None and later is not None and earlier != later:
            raise InputError(f"{second.path} is in the {name} {earlier!r} and in {later!r}; it can be in one only.")
        partitions[name] = earlier if later is None else later
    return first._replace(labels=tuple(dict.fromkeys(first.labels + second.labels)), **partitions)
