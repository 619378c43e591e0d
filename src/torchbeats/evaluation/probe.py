"""What frozen embeddings know of labels: a linear classifier and the nearest neighbours, on sounds held out in turn.

Nothing of a fold's test sounds is seen before they are predicted: scaling and the choice of C happen within the
training sounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from torchbeats.data.folds import Design, Fold, assign_folds
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation.metrics import (
    Array,
    accuracy,
    bootstrap,
    confusion,
    mean_average_precision,
    precision_recall_f1,
)
from torchbeats.evaluation.regression import limited_threads, regressions

CLASSIFIERS = ("linear", "k-NN")
INNER_FOLDS = 3  # within the training sounds, to choose C
CS = (0.001, 0.01, 0.1, 1.0)
NEIGHBOURS = 10

OnFit: TypeAlias = Callable[[], None]


@dataclass
class Outcome:
    """How one classifier did.

    Attributes:
        classifier: its name: one of `CLASSIFIERS`, or another that was tested the same way.
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
    x: Array,
    data: Labelled,
    plan: Design,
    classifier: str = "linear",
    c: float | None = None,
    seed: int = 0,
    on_fit: OnFit = lambda: None,
) -> Outcome:
    """Cross-validate a classifier on embeddings.

    Args:
        x: ``(N, D)`` embeddings, one for each example.
        data: the examples.
        plan: what is held out.
        classifier: "linear", logistic regression on standardised values (one against the rest if multi-label); or
            "k-NN", the `NEIGHBOURS` nearest by cosine, with the cosine as weight.
        c: the regression's inverse strength of regularisation; chosen of `CS` within each fold where not given.
        seed: random seed of the folds within folds and the bootstrap.
        on_fit: called behind every fit, `fits` times.

    Raises:
        InputError: training sounds of one class only, or embeddings that are not finite numbers.
    """
    check_rows(x, data)
    truth = data.targets()
    classes = len(data.classes)
    scores = np.full((len(truth), classes), np.nan, np.float32)
    best_cs: list[float] = []
    for fold in plan.folds:
        check_classes(truth[fold.train], data)
    with limited_threads(len(x), x.shape[1], classes):
        for fold in plan.folds:
            if classifier == "k-NN":
                scores[fold.test] = _neighbours(x, truth, fold, classes)
            else:
                best_cs.append(_best_c(x, truth, data, plan, fold.train, seed, on_fit) if c is None else c)
                ((_, scores[fold.test]),) = regressions(
                    x[fold.train], truth[fold.train], x[fold.test], classes, best_cs[-1:]
                )
            on_fit()
    return outcome(classifier, truth, scores, plan, seed, best_cs)


def fits(classifier: str, plan: Design, c: float | None = None) -> int:
    """How many fits `probe` reports: those at which C is chosen, too. Arguments as there."""
    to_choose = INNER_FOLDS * len(CS) if classifier == "linear" and c is None else 0
    return len(plan.folds) * (to_choose + 1)


def probe_layers(
    x: Array,
    layers: Sequence[int],
    data: Labelled,
    plan: Design,
    c: float | None = None,
    on_fit: OnFit = lambda: None,
) -> Iterator[tuple[int, Outcome]]:
    """Cross-validate every classifier of `CLASSIFIERS` on the embeddings of each layer.

    Args:
        x: ``(N, layers * D)`` embeddings, one for each example, its layers side by side.
        layers: their numbers.
        data: as for `probe`, and so the others.
        plan: what is held out.
        c: of the regression.
        on_fit: called behind every fit.

    Yields:
        A layer's number, and how one classifier did on it.
    """
    x = x.reshape(len(x), len(layers), -1)
    for position, layer in enumerate(layers):
        rows = np.ascontiguousarray(x[:, position])
        for classifier in CLASSIFIERS:
            yield layer, probe(rows, data, plan, classifier, c, on_fit=on_fit)


def outcome(
    classifier: str, truth: Array, scores: Array, plan: Design, seed: int = 0, c: Sequence[float] = ()
) -> Outcome:
    """The figures of a classifier's scores for the sounds that were held out.

    Args:
        classifier: its name.
        truth: ``(N,)`` class indices, or ``(N, classes)`` bool.
        scores: ``(N, classes)``; those of sounds that were never held out are not looked at.
        plan: what was held out.
        seed: random seed of the bootstrap.
        c: see `Outcome`.
    """
    tested = np.sort(np.concatenate([fold.test for fold in plan.folds]))
    measure = accuracy if truth.ndim == 1 else mean_average_precision
    figures, chance, table = _figures(truth[tested], scores[tested])
    return Outcome(
        classifier,
        figures,
        bootstrap(truth[tested], scores[tested], plan.units[tested], seed),
        chance,
        len(tested),
        [measure(truth[fold.test], scores[fold.test]) for fold in plan.folds],
        list(c),
        table,
    )


def check_rows(x: Array, data: Labelled) -> None:
    """Raise an `InputError` that names the first example whose values are not finite."""
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise InputError(
            f"The embedding of {data.examples[bad[0]].path} has values that are not finite"
            f"{f', and {len(bad) - 1:,} more have' if len(bad) > 1 else ''}; leave such sounds out."
        )


def check_classes(truth: Array, data: Labelled) -> None:
    """Raise an `InputError` where a fold's training sounds, with these targets, have nothing to tell apart."""
    classes = np.unique(truth) if truth.ndim == 1 else None
    if len(truth) and (classes is None or len(classes) > 1):
        return
    what = "nothing" if classes is None or not len(classes) else f"only the class {data.classes[classes[0]]!r}"
    raise InputError(f"A fold leaves {what} to learn from; give other folds or more sounds.")


def _figures(truth: Array, scores: Array) -> tuple[dict[str, float], float, Array | None]:
    classes = scores.shape[1]
    if truth.ndim == 2:
        shares = truth.mean(0)
        return (
            {"mAP": mean_average_precision(truth, scores)},
            float(shares[shares > 0].mean()) if shares.any() else math.nan,
            None,
        )
    predicted = scores.argmax(1)
    every = np.arange(classes)
    exact = precision_recall_f1(truth[:, np.newaxis] == every, predicted[:, np.newaxis] == every)
    present = np.bincount(truth, minlength=classes)
    figures = {
        "accuracy": accuracy(truth, scores),
        "balanced_accuracy": float(exact[present > 0, 1].mean()),
        "macro_f1": float(exact[present > 0, 2].mean()),
    }
    return figures, float(present.max() / len(truth)), confusion(truth, predicted, classes)


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
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)  # squares of large values are larger
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def _best_c(x: Array, truth: Array, data: Labelled, plan: Design, train: Array, seed: int, on_fit: OnFit) -> float:
    """The C of `CS` that scores best on sounds held out of the training sounds; of equals the smallest."""
    groups = None if plan.groups is None or len(np.unique(plan.groups[train])) < 2 else plan.groups[train]
    assignment = assign_folds(data.subset(train.tolist()), groups, INNER_FOLDS, seed)
    measure: Callable[[Array, Array], float] = accuracy if truth.ndim == 1 else mean_average_precision
    figures: dict[float, list[float]] = {c: [] for c in CS}
    for k in range(INNER_FOLDS):
        inner = Fold(train[assignment != k], train[assignment == k])
        learnable = len(inner.train) and len(inner.test) and (truth.ndim == 2 or len(np.unique(truth[inner.train])) > 1)
        paths = regressions(x[inner.train], truth[inner.train], x[inner.test], len(data.classes), CS)
        for c in CS:
            if learnable:
                figures[c].append(measure(truth[inner.test], next(paths)[1]))
            on_fit()
    means = {c: float(np.nanmean(values)) for c, values in figures.items() if not np.isnan(values).all()}
    return max(means, key=lambda c: (means[c], -c), default=CS[len(CS) // 2])
