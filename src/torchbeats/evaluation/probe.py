"""What frozen embeddings know of labels: a linear classifier and the nearest neighbours, on sounds held out in turn.

Nothing of a fold's test sounds is seen before they are predicted: scaling and the choice of C happen within the
training sounds. scikit-learn fits the linear classifier, and is imported only there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from torchbeats.data.folds import Design, Fold, dealt_out
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

CLASSIFIERS = ("linear", "k-NN")
INNER_FOLDS = 3  # within the training sounds, to choose C
CS = (0.001, 0.01, 0.1, 1.0)
NEIGHBOURS = 10


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
    measure = accuracy if truth.ndim == 1 else mean_average_precision
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


def probe_layers(
    x: Array, layers: Sequence[int], data: Labelled, plan: Design, c: float | None = None
) -> Iterator[tuple[int, str, Callable[[], Outcome]]]:
    """Every classifier on every layer's embeddings, one after the other.

    Args:
        x: ``(N, layers * D)`` embeddings, one for each example, its layers side by side.
        layers: their numbers.
        data: the examples.
        plan: what is held out.
        c: as for `probe`.

    Yields:
        A layer, a classifier, and a function that does the work.
    """
    x = x.reshape(len(x), len(layers), -1)
    for place, layer in enumerate(layers):
        for classifier in CLASSIFIERS:
            yield layer, classifier, partial(probe, np.ascontiguousarray(x[:, place]), data, plan, classifier, c)


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
    there = np.bincount(truth, minlength=classes)
    figures = {
        "accuracy": accuracy(truth, scores),
        "balanced_accuracy": float(exact[there > 0, 1].mean()),
        "macro_f1": float(exact[there > 0, 2].mean()),
    }
    return figures, float(there.max() / len(truth)), confusion(truth, predicted, classes)


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
    dealt = dealt_out(data.subset(train.tolist()), groups, INNER_FOLDS, seed)
    found: dict[float, list[float]] = {c: [] for c in CS}
    for k in range(int(dealt.max()) + 1):
        inner = Fold(train[dealt != k], train[dealt == k])
        if truth.ndim == 1 and len(np.unique(truth[inner.train])) < 2:
            continue
        measure: Callable[[Array, Array], float] = accuracy if truth.ndim == 1 else mean_average_precision
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
