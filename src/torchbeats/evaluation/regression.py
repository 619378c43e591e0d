"""Logistic regression on embeddings, fitted in the space that its training rows span.

The weights that minimise a loss of products with the training rows plus their own squares are a combination of those
rows: whatever stood at a right angle to all of them would change no product and only add squares (the representer
theorem; Schölkopf, Herbrich and Smola, COLT 2001). With fewer rows than values a row, n numbers therefore say as much
as all D, once they are coordinates of an orthonormal basis of the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from torchbeats.evaluation.metrics import Array
from torchbeats.extras import require

ITERATIONS = 1000
TOLERANCE = 1e-5  # of the gradient, in the smaller space; scikit-learn's own, 1e-4, leaves some predictions undecided
SMALL = 5e7  # multiplications of a step, below which the threads of a product wait longer for each other than they work


def limited_threads(rows: int, width: int, classes: int) -> AbstractContextManager[Any]:
    """One thread for linear algebra around regressions so small that more would slow it down, a hundredfold at worst.

    Args:
        rows: to learn from.
        width: D, values a row.
        classes: of them.
    """
    if rows * min(rows, width) * classes > SMALL:
        return nullcontext()
    require("sklearn.linear_model", "probe")  # brings a linear algebra of its own, which must be there to be limited
    limited: AbstractContextManager[Any] = require("threadpoolctl", "probe").threadpool_limits(1)
    return limited


def standardised(train: Array, test: Array) -> tuple[Array, Array]:
    """Rows with the training rows' mean 0 and variance 1, as scikit-learn's StandardScaler; constants stay as they are.

    Args:
        train: ``(n, D)``.
        test: ``(m, D)``.

    Returns:
        Both, float32.
    """
    train = train.astype(np.float32)
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation[deviation < 1e-7 * np.maximum(1, np.abs(mean))] = 1
    return ((train - mean) / deviation).astype(np.float32), ((test - mean) / deviation).astype(np.float32)


def spanned(train: Array, test: Array) -> tuple[Array, Array]:
    """The same products with every weight vector that a regression can end with, of n values a row instead of D.

    Args:
        train: ``(n, D)``.
        test: ``(m, D)``.

    Returns:
        ``(n, n)`` and ``(m, n)`` float64: coordinates in an orthonormal basis of the training rows. What they were
        where that would not pay, from n = D / 2 on.
    """
    if 2 * len(train) > train.shape[1]:
        return train, test
    basis, coordinates = np.linalg.qr(train.T)
    return np.ascontiguousarray(coordinates.T, np.float64), (test @ basis).astype(np.float64)


def regressions(
    train: Array, targets: Array, test: Array, classes: int, cs: Sequence[float]
) -> Iterator[tuple[float, Array]]:
    """Fit a regression for each strength of regularisation, each begun where the one before ended.

    Args:
        train: ``(n, D)`` rows, which are standardised here.
        targets: ``(n,)`` class indices; or ``(n, classes)`` bool, for one class against the rest.
        test: ``(m, D)`` rows to predict.
        classes: how many there are.
        cs: inverse strengths, ascending.

    Yields:
        Each C with the probabilities ``(m, classes)`` float32 that it leads to.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows, test_rows = spanned(*standardised(train, test))
    tolerance = TOLERANCE if rows.dtype == np.float64 else 1e-4
    problems = [(None, targets)] if targets.ndim == 1 else [(k, targets[:, k]) for k in range(classes)]
    models = [LogisticRegression(max_iter=ITERATIONS, tol=tolerance, warm_start=True) for _ in problems]
    for c in cs:
        scores = np.zeros((len(test), classes), np.float32)
        for (column, target), model in zip(problems, models, strict=True):
            if len(np.unique(target)) < 2:  # a class that all sounds have here, or none
                scores[:, target[0] if column is None else column] = 1 if column is None else target[0]
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps are near enough
                model.set_params(C=c).fit(rows, target)
            probabilities: Any = model.predict_proba(test_rows)
            if column is None:
                scores[:, model.classes_] = probabilities
            else:
                scores[:, column] = probabilities[:, 1]
        yield c, scores
