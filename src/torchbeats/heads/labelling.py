"""Labels of stretches of files → labels of the windows of a table."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from torchbeats.data.example import Example
from torchbeats.data.labelled import Labelled
from torchbeats.data.windows import MIN_OVERLAP, check_overlap, covers
from torchbeats.errors import InputError
from torchbeats.tables.reading import Table
from torchbeats.tagging import Indices


class LabelledWindows(NamedTuple):
    """The windows of a table that labels speak of.

    Attributes:
        indices: ``(n,)`` of their rows, in order.
        labelled: an example for each of them.
        unused: labelled stretches that no window of the table covers, as far as asked.
    """

    indices: Indices
    labelled: Labelled
    unused: list[Example]


def label_windows(
    table: Table, labelled: Labelled, min_overlap: float = MIN_OVERLAP, fully_annotated: bool = False
) -> LabelledWindows:
    """Give each window the labels of the stretches that it shares enough time with.

    Args:
        table: of windows.
        labelled: stretches of files, or whole files; one without labels says that nothing of the classes is in it.
        min_overlap: the share of the shorter of the two, window or stretch, that they must have in common.
        fully_annotated: windows of labelled files that no stretch covers hold nothing of the classes; where not, they
            say nothing and are left out.

    Raises:
        SettingsError: an overlap that is no share.
        InputError: no window of the table has a label.
    """
    check_overlap(min_overlap)
    stretches = defaultdict[str, list[int]](list)
    for number, example in enumerate(labelled.examples):
        stretches[_identity(example.path)].append(number)
    used = np.zeros(len(labelled.examples), bool)
    indices: list[int] = []
    examples: list[Example] = []
    identities: dict[str, str] = {}
    for rows in table.rows():
        for offset, (path, (start, end)) in enumerate(zip(rows.paths, rows.times.tolist(), strict=True)):
            if path not in identities:
                identities[path] = _identity(path)
            file_stretches = stretches.get(identities[path], [])
            covering = [n for n in file_stretches if covers(labelled.examples[n], start, end, min_overlap)]
            if not covering and not (file_stretches and fully_annotated):
                continue
            used[covering] = True
            labels = dict.fromkeys(label for n in covering for label in labelled.examples[n].labels)
            group = labelled.examples[covering[0] if covering else file_stretches[0]].group
            indices.append(rows.first + offset)
            examples.append(Example(path, tuple(labels), start, end, group=group or identities[path]))
    if not any(example.labels for example in examples):
        raise InputError(
            f"Not one of the {table.count:,} windows of {table.path} has a label: the labels are of "
            f"{labelled.examples[0].path} and {len(labelled.examples) - 1:,} more. Do both name the same files?"
        )
    several = any(len(example.labels) != 1 for example in examples)
    kind = "multi_label" if several else labelled.problem_type
    unused = [example for example, is_used in zip(labelled.examples, used.tolist(), strict=True) if not is_used]
    return LabelledWindows(np.array(indices, np.intp), Labelled(examples, labelled.classes, kind), unused)


def _identity(path: str) -> str:
    return os.path.realpath(path)
