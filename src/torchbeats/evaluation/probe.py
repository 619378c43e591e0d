"""What frozen embeddings know of labels: a linear classifier and the nearest neighbours, on sounds held out in turn.

Nothing of a fold's test sounds is seen before they are predicted: scaling and the choice of C happen within the
training sounds. scikit-learn fits the linear classifier, and is imported only there.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from torchbeats.evaluation.metrics import Array, average_precision, confusion, precision_recall_f1
from torchbeats.inputs import InputError
from torchbeats.labelled import Labelled, _few

MISSING = "Probes need scikit-learn: pip install 'torchbeats[probe]'."
CLASSIFIERS = ("linear", "k-NN")
FOLDS = 5
INNER_FOLDS = 3  # within the training sounds, to choose C
CS = (0.001, 0.01, 0.1, 1.0)
NEIGHBOURS = 10
RESAMPLES = {"accuracy": 2000, "mAP": 200}  # of the bootstrap
CONFIDENCE = 0.95


def available() -> bool:
    """Whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


# --- what is held out -------------------------------------------------------------------------------------------------


class Fold(NamedTuple):
    """Indices of the examples that a classifier learns from, and of those that it is asked about."""

    train: Array
    test: Array


@dataclass
class Design:
    """Which sounds are held out when.

    Attributes:
        name: what is done, in words.
        folds: one after the other.
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
    warnings: list[str] = field(default_factory=list)


def groups_from(data: Labelled, pattern: str) -> Labelled:
    """The same examples with the group that a regular expression finds in the path: its first group, or all of it.

    Raises:
        InputError: no regular expression, or a path that it does not fit.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}.") from error
    examples = []
    for example in data.examples:
        found = compiled.search(example.path)
        if found is None:
            raise InputError(f"The pattern {pattern!r} finds no group in {example.path}.")
        examples.append(example._replace(group=found[1] if compiled.groups else found[0]))
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
        raise InputError(f"There is one class only, {_few(present)}; a probe needs two to tell apart.")
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
    if folds is None and not by_group and split is not None and {"train", "test"} <= set(split.tolist()):
        plan.name, plan.folds = "train and test as given", [Fold(number[split == "train"], number[split == "test"])]
        if others := int((~np.isin(split, ["train", "test"])).sum()):
            plan.warnings.append(f"{others:,} sounds are in other splits than train and test, and left out.")
    elif folds is None and not by_group and fold is not None and len(set(fold.tolist()) - {""}) > 1:
        if "" in fold:
            raise InputError(f"{data.examples[int((fold == '').argmax())].path} has no fold, and others have.")
        plan.folds = _held_out(fold)
        plan.name = f"{len(plan.folds)} folds as given"
    elif folds is None and groups is not None:
        plan.folds = _held_out(groups)
        plan.name = f"each of {len(plan.folds)} groups left out in turn"
    else:
        dealt = _dealt(data, together, folds or FOLDS, seed)
        plan.folds = [Fold(number[dealt != k], number[dealt == k]) for k in range(int(dealt.max()) + 1)]
        if len(plan.folds) < 2:
            raise InputError("Every class has one sound only; a probe needs at least two of some.")
        kept = ", groups kept together" if groups is not None else ""
        plan.name = f"{len(plan.folds)} stratified folds{kept}"
    if together is not None and len(np.unique(together[np.concatenate([fold.test for fold in plan.folds])])) > 1:
        plan.units, plan.unit = together, "groups"
    plan.warnings += _unlearned(data, plan.folds)
    return plan


def _column(data: Labelled, name: str) -> Array | None:
    """What examples say of themselves, "" where one does not; None where none does. A missing group is an error."""
    found = [getattr(example, name) for example in data.examples]
    if all(value is None for value in found):
        return None
    if name == "group" and None in found:
        raise InputError(f"{data.examples[found.index(None)].path} has no group, and others have.")
    return np.array([value or "" for value in found])


def _held_out(values: Array) -> list[Fold]:
    return [Fold(np.flatnonzero(values != value), np.flatnonzero(values == value)) for value in np.unique(values)]


def _dealt(data: Labelled, groups: Array | None, folds: int, seed: int) -> Array:
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
    for unit, inside in members.items():
        strata[Counter(classes[i] for i in inside).most_common(1)[0][0]].append(unit)
    folds = min(folds, len(members) if groups is not None else max(len(units) for units in strata.values()))
    dealt, turn, generator = np.full(len(classes), -1), 0, np.random.default_rng(seed)
    for label in sorted(strata):
        units = strata[label]
        if len(units) == 1 and groups is None and label:
            continue
        for unit in generator.permutation(units).tolist():
            dealt[members[unit]] = turn % folds
            turn += 1
    return dealt


def _unlearned(data: Labelled, folds: Sequence[Fold]) -> Iterator[str]:
    counts = data.counts()
    asked = np.zeros(len(data.examples), bool)
    never: set[str] = set()
    for fold in folds:
        asked[fold.test] = True
        learned = {label for i in fold.train for label in data.examples[i].labels}
        never |= {label for i in fold.test for label in data.examples[i].labels} - learned
    tested = {label for example, yes in zip(data.examples, asked, strict=True) if yes for label in example.labels}
    single = [name for name in data.classes if counts[name] == 1 and name not in tested]
    if single:
        yield f"One sound only, learned from and never asked about: {_few(single)}."
    if never:
        yield f"Held out without an example to learn from, so never right: {_few(sorted(never))}."


# --- what is predicted ------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How one classifier did.

    Attributes:
        classifier: of `CLASSIFIERS`.
        figures: "accuracy", "balanced_accuracy" and "macro_f1", or for multi-label problems "mAP".
        interval: 95 % confidence, of the first of them.
        chance: the first of them for someone who does not listen: who always says the most frequent class; for mAP,
            the classes' mean share of the sounds.
        tested: examples that were held out.
        by_fold: the first of them in each fold.
        c: of the regression in each fold; empty for the neighbours.
        confusion: ``(classes, classes)``, truth by prediction; None for multi-label problems.
    """

    classifier: str
    figures: dict[str, float]
    interval: tuple[float, float]
    chance: float
    tested: int
    by_fold: list[float]
    c: list[float] = field(default_factory=list)
    confusion: Array | None = None


def probe(
    x: Array, data: Labelled, plan: Design, classifier: str = "linear", c: float | None = None, seed: int = 0
) -> Outcome:
    """Cross-validate a classifier on embeddings.

    Args:
        x: ``(N, D)`` embeddings, one for each example.
        data: the examples.
        plan: what is held out.
        classifier: "linear", logistic regression on standardised values (one against the rest if multi-label); or
            "k-NN", the `NEIGHBOURS` nearest by cosine, with the cosine as weight.
        c: the regression's inverse strength of regularisation; chosen of `CS` within each fold where not given.
        seed: of the folds within folds and the bootstrap.

    Raises:
        InputError: training sounds of one class only.
    """
    truth = data.targets()
    scores = np.full((len(truth), len(data.classes)), np.nan, np.float32)
    chosen: list[float] = []
    for fold in plan.folds:
        _check_classes(truth[fold.train], data)
        if classifier == "k-NN":
            scores[fold.test] = _neighbours(x, truth, fold, len(data.classes))
            continue
        chosen.append(_best_c(x, truth, data, plan, fold.train, seed) if c is None else c)
        scores[fold.test] = _linear(x, truth, fold, len(data.classes), chosen[-1])
    asked = np.sort(np.concatenate([fold.test for fold in plan.folds]))
    measure = _accuracy if truth.ndim == 1 else _mean_ap
    figures, chance, table = _figures(truth[asked], scores[asked])
    return Outcome(
        classifier,
        figures,
        bootstrap(truth[asked], scores[asked], plan.units[asked], seed),
        chance,
        len(asked),
        [measure(truth[fold.test], scores[fold.test]) for fold in plan.folds],
        chosen,
        table,
    )


def bootstrap(truth: Array, scores: Array, units: Array, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of accuracy or mAP over units drawn with replacement, by percentiles.

    Args:
        truth: ``(N,)`` or ``(N, classes)``.
        scores: ``(N, classes)``.
        units: ``(N,)`` integers; examples with the same are drawn together.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    _, units = np.unique(units, return_inverse=True)
    count = int(units.max()) + 1
    if truth.ndim == 1:
        right, size = np.bincount(units, scores.argmax(1) == truth), np.bincount(units)
        draws = np.array([generator.integers(0, count, count) for _ in range(RESAMPLES["accuracy"])])
        found = right[draws].sum(1) / size[draws].sum(1)
    else:
        members = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
        found = np.empty(RESAMPLES["mAP"])
        for i in range(len(found)):
            drawn = np.concatenate([members[unit] for unit in generator.integers(0, count, count)])
            found[i] = _mean_ap(truth[drawn], scores[drawn])
        found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _figures(truth: Array, scores: Array) -> tuple[dict[str, float], float, Array | None]:
    classes = scores.shape[1]
    if truth.ndim == 2:
        shares = truth.mean(0)
        return {"mAP": _mean_ap(truth, scores)}, float(shares[shares > 0].mean()) if shares.any() else math.nan, None
    predicted = scores.argmax(1)
    every = np.arange(classes)
    exact = precision_recall_f1(truth[:, np.newaxis] == every, predicted[:, np.newaxis] == every)
    there = np.bincount(truth, minlength=classes)
    figures = {
        "accuracy": _accuracy(truth, scores),
        "balanced_accuracy": float(exact[there > 0, 1].mean()),
        "macro_f1": float(exact[there > 0, 2].mean()),
    }
    return figures, float(there.max() / len(truth)), confusion(truth, predicted, classes)


def _accuracy(truth: Array, scores: Array) -> float:
    return float((scores.argmax(1) == truth).mean())


def _mean_ap(truth: Array, scores: Array) -> float:
    ap = average_precision(truth, scores)
    return float(np.nanmean(ap)) if not np.isnan(ap).all() else math.nan


def _check_classes(truth: Array, data: Labelled) -> None:
    if truth.ndim == 1 and len(found := np.unique(truth)) < 2:
        what = f"only the class {data.classes[found[0]]!r}" if len(found) else "nothing"
        raise InputError(f"A fold leaves {what} to learn from; give other folds or more sounds.")


def _scaled(x: Array, fold: Fold) -> tuple[Array, Array]:
    """Training and test rows with the training rows' mean 0 and variance 1, as scikit-learn's StandardScaler."""
    train = x[fold.train].astype(np.float32)
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation[deviation < 1e-7 * np.maximum(1, np.abs(mean))] = 1  # a constant stays one
    return tuple(((part - mean) / deviation).astype(np.float32) for part in (train, x[fold.test]))


def _neighbours(x: Array, truth: Array, fold: Fold, classes: int) -> Array:
    """``(test, classes)``: the share of the nearest neighbours, weighted by cosine, that have each class."""
    train, test = (_unit(x[part].astype(np.float32)) for part in fold)
    belongs = np.eye(classes, dtype=np.float32)[truth[fold.train]] if truth.ndim == 1 else truth[fold.train]
    count = min(NEIGHBOURS, len(train))
    scores = np.empty((len(test), classes), np.float32)
    for first in range(0, len(test), 1024):
        cosine = test[first : first + 1024] @ train.T
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        weight = np.maximum(np.take_along_axis(cosine, nearest, 1), 1e-6)
        votes = (weight[:, :, np.newaxis] * belongs[nearest]).sum(1)
        scores[first : first + 1024] = votes / weight.sum(1, keepdims=True)
    return scores


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _best_c(x: Array, truth: Array, data: Labelled, plan: Design, train: Array, seed: int) -> float:
    """Of `CS` the one that does best on sounds held out of the training sounds, the smallest of equals."""
    groups = None if plan.groups is None or len(np.unique(plan.groups[train])) < 2 else plan.groups[train]
    dealt = _dealt(data.subset(train.tolist()), groups, INNER_FOLDS, seed)
    found: dict[float, list[float]] = {c: [] for c in CS}
    for k in range(int(dealt.max()) + 1):
        inner = Fold(train[dealt != k], train[dealt == k])
        if truth.ndim == 1 and len(np.unique(truth[inner.train])) < 2:
            continue
        measure: Callable[[Array, Array], float] = _accuracy if truth.ndim == 1 else _mean_ap
        for c, scores in _fits(x, truth, inner, len(data.classes), CS):
            found[c].append(measure(truth[inner.test], scores))
    means = {c: float(np.nanmean(values)) for c, values in found.items() if not np.isnan(values).all()}
    return max(means, key=lambda c: (means[c], -c), default=CS[len(CS) // 2])


def _linear(x: Array, truth: Array, fold: Fold, classes: int, c: float) -> Array:
    return next(scores for _, scores in _fits(x, truth, fold, classes, (c,)))


def _fits(x: Array, truth: Array, fold: Fold, classes: int, cs: Sequence[float]) -> Iterator[tuple[float, Array]]:
    """``(test, classes)`` probabilities of logistic regressions, each begun where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, test = _scaled(x, fold)
    targets = truth[fold.train]
    problems = [(None, targets)] if targets.ndim == 1 else [(k, targets[:, k]) for k in range(classes)]
    regressions = [LogisticRegression(max_iter=1000, warm_start=True) for _ in problems]
    for c in cs:
        scores = np.zeros((len(test), classes), np.float32)
        for (column, target), regression in zip(problems, regressions, strict=True):
            if len(np.unique(target)) < 2:  # a class that all sounds have here, or none
                scores[:, column] = target[0]
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps are near enough
                regression.set_params(C=c).fit(train, target)
            found: Any = regression.predict_proba(test)
            if column is None:
                scores[:, regression.classes_] = found
            else:
                scores[:, column] = found[:, 1]
        yield c, scores
