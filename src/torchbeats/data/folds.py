"""Labelled sounds → which of them are held out when: once, or each in turn."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from torchbeats.data.labelled import Labelled
from torchbeats.data.path_patterns import finder
from torchbeats.data.splits import PURPOSES, purpose
from torchbeats.errors import InputError, quoted

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

FOLDS = 5
MANY_FOLDS = 20  # groups held out in turn, from which on their number is worth a word


class Fold(NamedTuple):
    """Indices of the examples that a classifier learns from, and of those that it is tested on."""

    train: Array
    test: Array


@dataclass
class Design:
    """Which sounds are held out when.

    Attributes:
        name: what is done, in words.
        folds: one after the other.
        names: of what each holds out: a group, a fold as given, the split; else the fold's number.
        groups: ``(N,)`` int64, the number of each example's group; None where there are none.
        units: ``(N,)`` int64, what the bootstrap draws: a group's number, or the example's own.
        unit: "examples" or "groups".
        warnings: what a reader of the figures should know.
    """

    name: str
    folds: list[Fold]
    groups: Array | None
    units: Array
    unit: str
    names: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def groups_from(data: Labelled, pattern: str) -> Labelled:
    """The same examples with the group that a regular expression finds in the path: its first group, or all of it.

    Raises:
        InputError: no regular expression, or a path that it does not fit.
    """
    group_of = finder(pattern, "group")
    examples = [example._replace(group=group_of(example.path)) for example in data.examples]
    return Labelled(examples, data.classes, data.problem_type)


def design(data: Labelled, folds: int | None = None, by_group: bool = False, seed: int = 0) -> Design:
    """Decide what is held out.

    Groups that are asked for come first, then ``folds``; then what the examples say: a split into train and test,
    folds, groups, each of which is held out in turn; and else `FOLDS` stratified folds. Folds that are made here keep
    groups together. A class with one example is always learned from, never asked about.

    Args:
        data: examples.
        folds: number of them.
        by_group: hold out each group in turn, or ``folds`` of them together, whatever else the examples say.
        seed: of the folds.

    Raises:
        InputError: fewer than two classes, or nothing that could be held out.
    """
    present = [name for name, count in data.counts().items() if count]
    if len(present) < 2 and data.problem_type == "single_label":
        raise InputError(f"There is one class only, {quoted(present)}; two are needed to tell apart.")
    groups, split, fold = (_column(data, name) for name in ("group", "split", "fold"))
    if groups is not None and len(set(groups.tolist())) < 2:
        if by_group:
            raise InputError(f"All sounds are in one group, {str(groups[0])!r}; none could be held out.")
        groups = None
    number = np.arange(len(data.examples))
    together = None if groups is None else np.unique(groups, return_inverse=True)[1]
    plan = Design("", [], together, number, "examples")
    if by_group and groups is None:
        raise InputError("The sounds have no groups.")
    as_given = folds is None and not by_group
    if as_given and split is not None and (kinds := _train_and_test(split)) is not None:
        plan.name, plan.names = "train and test as given", ["test"]
        plan.folds = [Fold(number[kinds == "train"], number[kinds == "test"])]
        if in_others := int((~np.isin(kinds, ["train", "test"])).sum()):
            plan.warnings.append(f"{in_others:,} sounds are in other splits than train and test, and left out.")
    elif as_given and fold is not None and len(set(fold.tolist()) - {""}) > 1:
        if "" in fold:
            raise InputError(f"{data.examples[int((fold == '').argmax())].path} has no fold, and others have.")
        plan.names, plan.folds = _held_out(fold)
        plan.name = f"{len(plan.folds)} folds as given"
    elif folds is None and groups is not None:
        plan.names, plan.folds = _held_out(groups)
        plan.name = f"each of {len(plan.folds)} groups left out in turn"
        if len(plan.folds) > MANY_FOLDS:
            plan.warnings.append(
                f"The sounds have {len(plan.folds):,} groups, each of which is held out in turn: that takes as many "
                f"fits. With --folds {FOLDS}, groups are held out together, and it is {len(plan.folds) // FOLDS} times "
                "faster."
            )
    else:
        assignment = assign_folds(data, together, folds or FOLDS, seed)
        plan.folds = [Fold(number[assignment != k], number[assignment == k]) for k in range(int(assignment.max()) + 1)]
        if len(plan.folds) < 2:
            raise InputError("Every class has one sound only; at least two of some are needed.")
        note = ", groups kept together" if groups is not None else ""
        plan.name = f"{len(plan.folds)} stratified folds{note}"
        plan.names = [str(k) for k in range(1, len(plan.folds) + 1)]
    if as_given and split is not None and plan.names != ["test"]:
        plan.warnings.append(f"No train and test among the splits {quoted(_natural(split))}: they play no part.")
    if together is not None and len(np.unique(together[np.concatenate([fold.test for fold in plan.folds])])) > 1:
        plan.units, plan.unit = together, "groups"
    plan.warnings += _unlearned_labels(data, plan.folds)
    return plan


def _column(data: Labelled, name: str) -> Array | None:
    """What examples say of themselves, "" where one does not; None where none does. A missing group is an error."""
    values = [getattr(example, name) for example in data.examples]
    if all(value is None for value in values):
        return None
    if name == "group" and None in values:
        raise InputError(f"{data.examples[values.index(None)].path} has no group, and others have.")
    return np.array([value or "" for value in values])


def _train_and_test(splits: Array) -> Array | None:
    """What each example's split is for; where none is for testing, those for validation are. None without both."""
    kinds = np.array([purpose(name) or "" for name in splits.tolist()])
    if "test" not in kinds:
        kinds = np.where(kinds == "validation", "test", kinds)
    return kinds if {"train", "test"} <= set(kinds.tolist()) else None


def _natural(values: Array) -> list[str]:
    """Every value once, in the order that people expect: 2 before 10."""
    parts = lambda value: [(len(part), part) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", value)]  # noqa: E731
    return sorted(set(values.tolist()), key=parts)


def _held_out(values: Array) -> tuple[list[str], list[Fold]]:
    """Names, and folds that hold out all of each."""
    names = _natural(values)
    return names, [Fold(np.flatnonzero(values != name), np.flatnonzero(values == name)) for name in names]


def assign_folds(data: Labelled, groups: Array | None, folds: int, seed: int) -> Array:
    """``(N,)`` the fold of each example, -1 for those that are never held out.

    Examples, or groups of them, are dealt out class by class, so that each fold has its share of every class; in
    multi-label problems by an example's rarest label.
    """
    counts = data.counts()
    classes = [min(example.labels, key=lambda label: counts[label], default="") for example in data.examples]
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(classes)):
        members[i if groups is None else int(groups[i])].append(i)
    strata: dict[str, list[int]] = defaultdict(list)
    for unit, indices in members.items():
        strata[Counter(classes[i] for i in indices).most_common(1)[0][0]].append(unit)
    folds = min(folds, len(members) if groups is not None else max(len(units) for units in strata.values()))
    assignment, position, generator = np.full(len(classes), -1), 0, np.random.default_rng(seed)
    for label in sorted(strata):
        units = strata[label]
        if len(units) == 1 and groups is None and label and counts[label] == 1:
            continue
        for unit in generator.permutation(units).tolist():
            assignment[members[unit]] = position % folds
            position += 1
    return assignment


def _unlearned_labels(data: Labelled, folds: Sequence[Fold]) -> Iterator[str]:
    counts = data.counts()
    held_out = np.zeros(len(data.examples), bool)
    unlearned: set[str] = set()
    for fold in folds:
        held_out[fold.test] = True
        learned = {label for i in fold.train for label in data.examples[i].labels}
        unlearned |= {label for i in fold.test for label in data.examples[i].labels} - learned
    tested = {
        label
        for example, is_held_out in zip(data.examples, held_out, strict=True)
        if is_held_out
        for label in example.labels
    }
    single = [name for name in data.classes if counts[name] == 1 and name not in tested]
    if single:
        yield f"One sound only, learned from and never asked about: {quoted(single)}."
    if unlearned:
        yield f"Held out without an example to learn from, so never right: {quoted(sorted(unlearned))}."


class Split(NamedTuple):
    """Examples to train on, those to validate on while training (None: no such), and those to leave alone."""

    train: Labelled
    validation: Labelled | None
    rest: Labelled


def split(labelled: Labelled, share: float, seed: int) -> Split:
    """Divide examples by the split that they say they are in, if they do, else by a seeded share of each class.

    Where some are for validation, those for testing are left alone; where only some are for testing, they validate.
    Groups, or else the pieces of a file, stay together when a share is drawn. A class's last example stays in training.

    Raises:
        InputError: a split of unknown purpose, or none to train on.
    """
    names = [example.split or "train" for example in labelled.examples]
    if unknown := sorted({name for name in names if purpose(name) is None}):
        raise InputError(f"There is no telling what the split {quoted(unknown)} is for: train, validation or test?")
    kinds = [str(purpose(name)) for name in names]
    if "validation" not in kinds:
        kinds = ["validation" if kind == "test" else kind for kind in kinds]
    if "train" not in kinds:
        raise InputError("No sound is in the split train; all are held out.")
    if "validation" not in kinds and share:
        for i in share_of(labelled, share, seed):
            kinds[i] = "validation"
    parts = {kind: labelled.subset(i for i, k in enumerate(kinds) if k == kind) for kind in PURPOSES}
    return Split(parts["train"], parts["validation"] if parts["validation"].examples else None, parts["test"])


def share_of(labelled: Labelled, share: float, seed: int) -> list[int]:
    """Indices of a seeded share of each class's examples, never all of a class.

    Groups stay together, and pieces of one file where there are no groups: they sound alike.
    """
    random = np.random.default_rng(seed)
    units: dict[str, list[int]] = {}
    for i, example in enumerate(labelled.examples):
        units.setdefault(f"g {example.group}" if example.group is not None else f"f {example.path}", []).append(i)
    left = labelled.counts()
    quota = {name: share * count for name, count in left.items()}
    out: list[int] = []
    for unit in [list(units.values())[i] for i in random.permutation(len(units))]:
        labels = [label for i in unit for label in labelled.examples[i].labels]
        if labels and all(quota[label] >= 0.5 and left[label] > labels.count(label) for label in labels):
            out += unit
            for label in labels:
                quota[label] -= 1
                left[label] -= 1
    return sorted(out)
