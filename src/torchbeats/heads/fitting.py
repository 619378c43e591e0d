"""A label head from stored embeddings: logistic regression, calibrated, with a threshold for each class.

Everything that is said of it comes from windows of files that played no part in the fit which scored them. The result
is a whole model: scaling, regression and calibration are one linear layer on top of the model that made the table.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from torchbeats import abstention
from torchbeats.config import BEATsConfig
from torchbeats.data.folds import Design, design
from torchbeats.data.labelled import Labelled
from torchbeats.errors import InputError, ModelError, SettingsError
from torchbeats.evaluation.metrics import Array, accuracy, average_precision, mean_average_precision
from torchbeats.files import sha256
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.tables.reading import Table
from torchbeats.weights import hub

CS = (0.001, 0.01, 0.1, 1.0)
FOLDS = 5
_FEW_FILES = 5  # that have a label: figures of windows held out file by file say little then
# Of a configuration, what was measured with the model's head; another head is not to have it.
OF_A_HEAD = ("thresholds", "fitted", abstention.SETTING)


class Linear(NamedTuple):
    """Logits are ``x @ weight.T + bias``: ``(classes, D)`` and ``(classes,)`` float64."""

    weight: Array
    bias: Array

    def logits(self, x: Array) -> Array:
        """``(N, classes)``."""
        return x @ self.weight.T + self.bias


@dataclass
class Head:
    """A fitted label head.

    Attributes:
        linear: from embeddings to calibrated logits.
        classes: names.
        problem_type: "single_label" (softmax) or "multi_label" (sigmoid).
        thresholds: ``(classes,)``, from which probability on a class counts as present; NaN where no threshold reaches
            the precision that was asked for, or nothing is known.
        c: the regression's inverse strength of regularisation.
        held_out: how the figures were made, in words; None where there were too few files for any.
        figures: "mAP" and, of single-label problems, "accuracy", on windows that were held out.
        by_class: for each class its number of windows, average precision, threshold, and precision and recall there.
        warnings: what a reader of the figures should know.
        abstention: what a model's file is to say of sounds that are unknown; see `torchbeats.abstention`. None of
            several labels a window, where a window may have none, and without held-out windows.
    """

    linear: Linear
    classes: list[str]
    problem_type: str
    thresholds: Array
    c: float
    held_out: str | None
    figures: dict[str, float]
    by_class: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    abstention: dict[str, Any] | None = None

    def probabilities(self, x: Array) -> Array:
        """``(N, classes)`` for embeddings ``(N, D)``."""
        return _probabilities(self.linear.logits(x), self.problem_type)


def fit_head(
    x: Array,
    windows: Labelled,
    *,
    precision: float = 0.9,
    folds: int = FOLDS,
    balance: bool = True,
    c: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Head:
    """Fit a label head.

    Args:
        x: ``(N, D)`` embeddings.
        windows: their labels, with a group each (a file, a speaker), which folds keep together.
        precision: that a class's threshold is to reach on held-out windows.
        folds: of the cross-validation.
        balance: give rare classes the weight of frequent ones.
        c: inverse strength of the regularisation; the best of `CS` on held-out windows where not given.
        seed: of the folds.
        progress: called with the number of fits that are done, and of all.

    Raises:
        SettingsError: a precision that is none.
        InputError: windows of one class only.
    """
    if not 0 < precision <= 1:
        raise SettingsError(f"A precision is more than 0 and at most 1, not {precision}.")
    truth = windows.targets()
    if truth.ndim == 1 and len(np.unique(truth)) < 2:
        raise InputError("All labelled windows are of one class; label some of another, or some without any.")
    if truth.ndim == 2 and (truth.all(0) | ~truth.any(0)).all():
        raise InputError("All labelled windows have the same labels; label some of another class, or some without any.")
    notes: list[str] = []
    plan = _plan(windows, folds, seed, notes)
    candidates = CS if c is None else (c,)
    total = len(candidates) * (len(plan.folds) if plan else 0) + 1
    done = 0
    held_out: dict[float, Array] = {}
    for fold in plan.folds if plan else ():
        for strength, linear in _fits(x[fold.train], truth[fold.train], len(windows.classes), candidates, balance):
            scores = held_out.setdefault(strength, np.full((len(x), len(windows.classes)), np.nan))
            scores[fold.test] = linear.logits(x[fold.test].astype(np.float64))
            progress(done := done + 1, total)
    best = max(held_out, key=lambda strength: _quality(truth, held_out[strength], windows.problem_type), default=None)
    strength = best if best is not None else (0.01 if c is None else c)
    ((_, linear),) = _fits(x, truth, len(windows.classes), (strength,), balance)
    progress(total, total)
    if best is None or plan is None:
        unknown = np.full(len(windows.classes), math.nan)
        counts = windows.counts()
        rows = [{"class": name, "windows": counts[name]} for name in windows.classes]
        return Head(linear, windows.classes, windows.problem_type, unknown, strength, None, {}, rows, notes)
    scored = ~np.isnan(held_out[best]).any(1)
    scale, offset = _calibration(truth[scored], held_out[best][scored], windows.problem_type)
    linear = Linear(linear.weight * scale[:, np.newaxis], linear.bias * scale + offset)
    probabilities = _probabilities(held_out[best][scored] * scale + offset, windows.problem_type)
    figures, rows = _figures(truth[scored], probabilities, windows, precision, notes)
    thresholds = np.array([row["threshold"] for row in rows])
    head = Head(linear, windows.classes, windows.problem_type, thresholds, strength, plan.name, figures, rows, notes)
    if windows.problem_type == "single_label" and abstention.UNKNOWN not in windows.classes:
        head.abstention = {
            **abstention.setting(probabilities, windows.classes),
            "temperature": round(float(1 / scale[0]), 6),
        }
    return head


def base_model(table: Table, name: str | os.PathLike[str] | None = None) -> BEATs:
    """The model that a table was made with, and no other.

    Args:
        table: of embeddings.
        name: of the model, or its file; what the table names, if not given.

    Raises:
        ModelError: it has other weights.
    """
    path = hub.resolve(name or table.about["model"])
    if f"sha256:{sha256(path)}" != table.about["weights"]:
        raise ModelError(f"{table.path} was made with other weights than {path}; name the model with --model.")
    return load(path, expect=BEATs)


def whole_model(base: BEATs, head: Head, about: dict[str, Any]) -> BEATs:
    """The model that a table was made with, with a fitted head on top.

    Args:
        base: that model.
        head: of its embeddings.
        about: what the table says of itself; pooling, layer and window go into the result's configuration, as do the
            thresholds and the figures.

    Raises:
        ModelError: a pooling or a layer that a label head cannot follow.
    """
    pool, layer, depth = about["pool"], about["layer"], base.cfg.encoder_layers
    if pool not in WINDOW_POOLINGS:
        raise ModelError(f"A label head follows the poolings {', '.join(WINDOW_POOLINGS)}; the table has {pool}.")
    layer = depth if layer is None else layer
    if not isinstance(layer, int) or layer < 1 or (layer < depth and base.cfg.layer_norm_first):
        raise ModelError(f"A label head cannot follow layer {layer} of this model; embed with the last layer.")
    cfg = BEATsConfig(
        base.cfg.to_dict(),
        encoder_layers=layer,
        finetuned_model=True,
        predictor_class=len(head.classes),
        predictor_pool=pool,
        problem_type=head.problem_type,
    )
    for name in OF_A_HEAD:
        cfg.__dict__.pop(name, None)
    cfg.update(
        {
            "thresholds": [None if math.isnan(value) else round(float(value), 6) for value in head.thresholds],
            "fitted": {
                **{name: about[name] for name in ("weights", "pool", "layer", "window", "hop")},
                "held_out": head.held_out,
                "figures": head.figures,
            },
        }
    )
    if head.abstention is not None:
        cfg.update({abstention.SETTING: head.abstention})
    model = BEATs(cfg)
    weights = {name: value for name, value in base.state_dict().items() if name in model.state_dict()}
    weights["predictor.weight"] = torch.from_numpy(head.linear.weight).float()
    weights["predictor.bias"] = torch.from_numpy(head.linear.bias).float()
    model.load_state_dict(weights)
    model.label_dict = dict(enumerate(head.classes))
    return model


# --- the regression ---------------------------------------------------------------------------------------------------


def _plan(windows: Labelled, folds: int, seed: int, notes: list[str]) -> Design | None:
    """Files held out together; None where there is too little to hold anything out."""
    groups = len({example.group for example in windows.examples})
    if groups == 1:
        notes.append("All labelled windows are of one file: figures for other recordings will be lower.")
    try:
        plan = design(windows, min(folds, max(2, groups)), False, seed)
    except InputError as error:
        notes.append(f"No figures, and no thresholds: {error}")
        return None
    notes += plan.warnings
    return plan


def _fits(
    x: Array, truth: Array, classes: int, strengths: Sequence[float], balance: bool
) -> list[tuple[float, Linear]]:
    """Regressions on standardised embeddings, with the scaling folded in.

    A regularised solution lies in the span of the training rows: where those are fewer than the dimensions, the fit is
    in their coordinates, which is the same and much faster.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    deviation[deviation < 1e-7 * np.maximum(1, np.abs(mean))] = 1
    scaled = (x - mean) / deviation
    basis = None
    if len(scaled) < scaled.shape[1]:
        left, singular, basis = np.linalg.svd(scaled, full_matrices=False)
        scaled = left * singular
    weighting = "balanced" if balance else None
    results = []
    for strength in strengths:
        weight, bias = np.zeros((classes, scaled.shape[1])), np.zeros(classes)
        regression = LogisticRegression(C=strength, class_weight=weighting, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps are near enough
            if truth.ndim == 1:
                present = np.unique(truth)
                if len(present) > 1:  # of one alone there is nothing to weigh
                    regression.fit(scaled, truth)
                if len(present) == 2:  # scikit-learn gives one row, the second's log odds against the first
                    weight[present], bias[present] = (
                        np.concatenate([-regression.coef_, regression.coef_]) / 2,
                        (np.concatenate([-regression.intercept_, regression.intercept_]) / 2),
                    )
                elif len(present) > 2:
                    weight[present], bias[present] = regression.coef_, regression.intercept_
                absent = np.setdiff1d(np.arange(classes), present)
                bias[absent] = -20.0  # never learned, never said
            else:
                for k in range(classes):
                    share = truth[:, k].mean()
                    if share in (0, 1):
                        bias[k] = 20.0 if share else -20.0
                        continue
                    regression.fit(scaled, truth[:, k])
                    weight[k], bias[k] = regression.coef_[0], regression.intercept_[0]
        weight = (weight if basis is None else weight @ basis) / deviation
        results.append((strength, Linear(weight, bias - weight @ mean)))
    return results


def _probabilities(logits: Array, problem_type: str) -> Array:
    if problem_type == "single_label":
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


def _quality(truth: Array, logits: Array, problem_type: str) -> float:
    scored = ~np.isnan(logits).any(1)
    value = (
        accuracy(truth[scored], logits[scored])
        if problem_type == "single_label"
        else mean_average_precision(truth[scored], logits[scored])
    )
    return -math.inf if math.isnan(value) else value


# --- calibration, and what is said of it ------------------------------------------------------------------------------


def _calibration(truth: Array, logits: Array, problem_type: str) -> tuple[Array, Array]:
    """Scale and offset of each class's logits with which held-out probabilities are as often right as they say.

    Of a softmax one temperature (Guo et al., arXiv 1706.04599); of sigmoids Platt's two numbers each, which also undo
    the weighting of rare classes.
    """
    classes = logits.shape[1]
    scale, offset = np.ones(classes), np.zeros(classes)
    if problem_type == "single_label":
        temperature = _minimum(lambda t: _log_loss(truth, logits / t), 0.05, 20.0)
        return scale / temperature, offset
    from sklearn.linear_model import LogisticRegression

    for k in range(classes):
        positive = int(truth[:, k].sum())
        if not 0 < positive < len(truth):
            continue
        # Each side keeps a share of doubt (Platt 1999), so that a few perfect scores do not become certainty.
        targets = np.repeat([1, 0], len(truth))
        positive_target, negative_target = (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2)
        share = np.where(truth[:, k] > 0, positive_target, negative_target)
        column = np.concatenate([logits[:, k], logits[:, k]])[:, np.newaxis]
        platt = LogisticRegression(C=1e6).fit(column, targets, np.concatenate([share, 1 - share]))
        if platt.coef_[0, 0] > 0:  # else the class cannot be told apart, and its order means nothing
            scale[k], offset[k] = platt.coef_[0, 0], platt.intercept_[0]
    return scale, offset


def _log_loss(truth: Array, logits: Array) -> float:
    probabilities = _probabilities(logits, "single_label")
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean())


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one positive number is least, by golden section on its logarithm."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    for _ in range(40):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        if function(math.exp(left)) < function(math.exp(right)):
            b = right
        else:
            a = left
    return math.exp((a + b) / 2)


def _figures(
    truth: Array, probabilities: Array, windows: Labelled, precision: float, notes: list[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    exact = truth[:, np.newaxis] == np.arange(len(windows.classes)) if truth.ndim == 1 else truth > 0
    figures = {"mAP": mean_average_precision(exact, probabilities)}
    if truth.ndim == 1:
        figures = {"accuracy": accuracy(truth, probabilities), **figures}
    rows: list[dict[str, Any]] = []
    for k, (name, average) in enumerate(zip(windows.classes, average_precision(exact, probabilities), strict=True)):
        threshold, reached, recall = threshold_for(exact[:, k], probabilities[:, k], precision)
        row = {"class": name, "windows": int(exact[:, k].sum()), "average_precision": float(average)}
        rows.append({**row, "threshold": threshold, "precision": reached, "recall": recall})
    if missed := [row["class"] for row in rows if math.isnan(row["threshold"])]:
        files = {name: len({e.path for e in windows.examples if name in e.labels}) for name in missed}
        few = [f"{name} ({count})" for name, count in files.items() if count < _FEW_FILES]
        more = f" Labels in more files would help, which few have: {', '.join(few)}." if few else ""
        notes.append(
            f"No threshold reaches a precision of {precision:g} on held-out windows of: {', '.join(missed)}; theirs is "
            f"0.5.{more}"
        )
    return figures, rows


def threshold_for(truth: Array, scores: Array, precision: float) -> tuple[float, float, float]:
    """The smallest threshold whose precision is at least what is asked for.

    Args:
        truth: ``(N,)`` bool.
        scores: ``(N,)``.
        precision: that is asked for.

    Returns:
        The threshold, its precision and its recall; NaN, NaN and 0 where there is none.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of the rows that share a score
    hits = np.cumsum(truth[order])[last]
    reached = hits / (last + 1)
    enough = np.flatnonzero((reached >= precision) & (hits > 0))
    if not len(enough):
        return math.nan, math.nan, 0.0
    best = enough[-1]
    return float(scores[order][last[best]]), float(reached[best]), float(hits[best] / truth.sum())
