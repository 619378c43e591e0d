"""Scores and truth → figures.

Truth of a multi-label problem is ``(N, classes)`` bool; of a single-label one ``(N,)``, the class of each example.
Everything agrees with scikit-learn, ties included. A figure that is not defined, such as the average precision of a
class without examples, is NaN, and means leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

RESAMPLES = {"accuracy": 2000, "mAP": 200}  # of the bootstrap
CONFIDENCE = 0.95
THRESHOLD = 0.5  # a class of a multi-label problem is predicted from this probability on


def average_precision(truth: npt.ArrayLike, scores: npt.ArrayLike) -> Array:
    """Average precision of each class: the mean, over its examples, of the precision down to them.

    Args:
        truth: ``(N, classes)`` bool.
        scores: ``(N, classes)``, of any scale; equal scores share a place.

    Returns:
        ``(classes,)``, NaN for a class without examples.
    """
    averages = []
    for positive, score in _columns(truth, scores):
        order = np.argsort(-score, kind="stable")
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of the examples that share a score
        hits = np.cumsum(positive[order])[last]
        averages.append(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1] if hits[-1] else math.nan)
    return np.array(averages)


def mean_average_precision(truth: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Mean of `average_precision` over the classes that have examples; NaN where none has."""
    return _mean(average_precision(truth, scores))


def accuracy(truth: Array, scores: Array) -> float:
    """Share of examples whose class scores highest; ``truth`` is ``(N,)``, ``scores`` ``(N, classes)``."""
    return float((scores.argmax(1) == truth).mean())


def roc_auc(truth: npt.ArrayLike, scores: npt.ArrayLike) -> Array:
    """Area under the ROC curve of each class: how often an example of it has a higher score than another one.

    Args:
        truth: ``(N, classes)`` bool.
        scores: ``(N, classes)``, of any scale; a tie counts half.

    Returns:
        ``(classes,)``, NaN for a class that no example has, or all.
    """
    areas = []
    for positive, score in _columns(truth, scores):
        positives = int(positive.sum())
        outside = len(positive) - positives
        _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1 on, the mean where scores are equal
        wins = ranks[positive].sum() - positives * (positives + 1) / 2
        areas.append(wins / (positives * outside) if positives and outside else math.nan)
    return np.array(areas)


def d_prime(auc: float) -> float:
    """How many standard deviations apart two normal distributions lie that have this area under the ROC curve.

    As in Hershey et al., "CNN architectures for large-scale audio classification" (ICASSP 2017), and in AudioSet
    figures since: of the mean over classes of `roc_auc`.
    """
    if math.isnan(auc):
        return math.nan
    if not 0 < auc < 1:
        return math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def lwlrap(truth: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Label-weighted label-ranking average precision, the measure of DCASE 2019's task 2 (Fonseca et al. 2019).

    For every label of every example: of the classes that score as high as it or higher, the share that are labels of
    the example too. The mean over all labels; scikit-learn's ``label_ranking_average_precision_score`` with the
    examples weighted by their number of labels.

    Args:
        truth: ``(N, classes)`` bool.
        scores: ``(N, classes)``, of any scale.

    Returns:
        The mean; NaN where there are no labels.
    """
    truth, scores = _checked(truth, scores)
    total = 0.0
    for labels, score in zip(truth, scores, strict=True):
        positive_scores = np.sort(score[labels])
        ranks = len(score) - np.searchsorted(np.sort(score), positive_scores, side="left")
        total += float(
            np.sum((len(positive_scores) - np.searchsorted(positive_scores, positive_scores, side="left")) / ranks)
        )
    count = int(truth.sum())
    return total / count if count else math.nan


def confusion(truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Array:
    """Examples by their class, a row each, and by the one predicted, a column each.

    Args:
        truth: ``(N,)`` integers.
        predicted: ``(N,)`` integers.
        classes: how many there are.

    Returns:
        ``(classes, classes)`` int64.
    """
    pairs = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def precision_recall_f1(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> Array:
    """Precision, recall and their harmonic mean, for each class.

    Args:
        truth: ``(N, classes)`` bool.
        predicted: ``(N, classes)`` bool.

    Returns:
        ``(classes, 3)``; zero where nothing was predicted, or nothing there to be found.
    """
    truth, predicted = _checked(truth, predicted)
    correct, predictions, actual = (truth & predicted.astype(bool)).sum(0), predicted.astype(bool).sum(0), truth.sum(0)
    return np.stack(
        [_ratio(correct, predictions), _ratio(correct, actual), _ratio(2 * correct, predictions + actual)], axis=1
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
        samples = right[draws].sum(1) / size[draws].sum(1)
    else:
        members = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
        samples = np.empty(RESAMPLES["mAP"])
        for i in range(len(samples)):
            drawn = np.concatenate([members[unit] for unit in generator.integers(0, count, count)])
            samples[i] = mean_average_precision(truth[drawn], scores[drawn])
        samples = samples[~np.isnan(samples)]
    if not len(samples):
        return math.nan, math.nan
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


class ClassFigures(NamedTuple):
    """One class.

    Attributes:
        name: its label.
        examples: of it.
        ap: average precision.
        auc: area under the ROC curve.
        precision: of what was predicted to be it.
        recall: of its examples, those predicted to be it.
        f1: harmonic mean of the two.
    """

    name: str
    examples: int
    ap: float
    auc: float
    precision: float
    recall: float
    f1: float


@dataclass
class Report:
    """All figures of a model's scores.

    Attributes:
        problem_type: "single_label" or "multi_label".
        examples: how many there are.
        figures: by name; "mAP", "d_prime", "macro_f1" and so on.
        classes: each class.
        absent: names of classes without examples, which no mean over classes includes.
        confusion: ``(classes, classes)`` counts, truth by prediction; None for multi-label problems.
    """

    problem_type: str
    examples: int
    figures: dict[str, float]
    classes: list[ClassFigures]
    absent: list[str] = field(default_factory=list)
    confusion: Array | None = None


def report(truth: npt.ArrayLike, scores: npt.ArrayLike, names: Sequence[str]) -> Report:
    """All figures that fit the problem.

    Single-label: accuracy, balanced accuracy, macro F1, mAP, AUC and d′ of one class against the rest. Multi-label:
    mAP, AUC, d′, lwlrap, and macro F1 of what has a probability of at least one half. Means over classes leave out
    those without examples.

    Args:
        truth: ``(N,)`` integers, single-label; or ``(N, classes)`` of zero and one, multi-label.
        scores: ``(N, classes)`` probabilities.
        names: of the classes.

    Raises:
        ValueError: the shapes do not go together, there are no examples, or a score is NaN.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if not len(truth) or scores.shape != (len(truth), len(names)):
        raise ValueError(f"There must be a score for each of {len(truth)} examples and {len(names)} classes.")
    single = truth.ndim == 1
    every = np.arange(len(names))
    belongs = truth[:, np.newaxis] == every if single else truth.astype(bool)
    predicted = scores.argmax(1)[:, np.newaxis] == every if single else scores >= THRESHOLD
    counts, ap, auc = belongs.sum(0), average_precision(belongs, scores), roc_auc(belongs, scores)
    exact = precision_recall_f1(belongs, predicted)
    present = counts > 0
    mean_auc = _mean(auc[present])
    figures = {"mAP": _mean(ap[present]), "auc": mean_auc, "d_prime": d_prime(mean_auc)}
    if single:
        right = float((belongs & predicted).any(1).mean())
        figures = {"accuracy": right, "balanced_accuracy": _mean(exact[present, 1]), **figures}
    else:
        figures["lwlrap"] = lwlrap(belongs, scores)
    figures["macro_f1"] = _mean(exact[present, 2])
    columns = (names, counts.tolist(), ap.tolist(), auc.tolist(), *exact.T.tolist())
    classes = [ClassFigures(*row) for row in zip(*columns, strict=True)]
    absent = [name for name, exists in zip(names, present, strict=True) if not exists]
    kind = "single_label" if single else "multi_label"
    table = confusion(truth, scores.argmax(1), len(names)) if single else None
    return Report(kind, len(truth), figures, classes, absent, table)


def _mean(values: Array) -> float:
    """Mean of what is defined."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _ratio(part: Array, total: Array) -> Array:
    return np.divide(part, total, out=np.zeros(len(part)), where=total > 0)


def _columns(truth: npt.ArrayLike, scores: npt.ArrayLike) -> Any:
    truth, scores = _checked(truth, scores)
    return zip(truth.T, scores.T, strict=True)


def _checked(truth: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Array, Array]:
    truth, scores = np.asarray(truth).astype(bool), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != scores.shape or not len(truth):
        raise ValueError(f"Truth and scores must both be (examples, classes), not {truth.shape} and {scores.shape}.")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise ValueError(f"The scores of example {int(np.isnan(scores).any(1).argmax())} are not numbers.")
    return truth, scores
