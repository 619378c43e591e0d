"""Regressions in the span of their rows against scikit-learn on all values."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from torchbeats.evaluation import regression
from torchbeats.evaluation.regression import limited_threads, regressions, spanned, standardised

CS = (0.001, 0.01, 0.1, 1.0)


def rows(n, width, classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    shared = random.standard_normal((n, 12)) @ random.standard_normal((12, width))
    return (shared + random.standard_normal((classes, width))[labels] + random.standard_normal((n, width))), labels


def expected(train, labels, test, c):
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(scaler.transform(train), labels)
    return model.predict_proba(scaler.transform(test))


@pytest.mark.parametrize("width", [700, 60])  # more values than rows, and fewer
def test_probabilities_are_those_of_all_values(width):
    x, labels = rows(160, width)
    train, test = x[:100], x[100:]
    path = list(regressions(train, labels[:100], test, 4, CS))
    assert [c for c, _ in path] == list(CS)
    for c, scores in path:
        exact = expected(train, labels[:100], test, c)
        np.testing.assert_allclose(scores, exact, atol=2e-3 if width == 700 else 2e-2)
        assert (scores.argmax(1) == exact.argmax(1)).mean() >= (1 if width == 700 else 0.98)


def test_several_labels_are_one_class_against_the_rest():
    x, labels = rows(160, 700)
    belongs = np.stack([labels == 0, labels % 2 == 0, labels >= 0, labels < 0], axis=1)
    ((_, scores),) = regressions(x[:100], belongs[:100], x[100:], 4, [0.1])
    for k in (0, 1):
        exact = expected(x[:100], belongs[:100, k], x[100:], 0.1)[:, 1]
        np.testing.assert_allclose(scores[:, k], exact, atol=2e-3)
    assert (scores[:, 2] == 1).all()  # what all have
    assert (scores[:, 3] == 0).all()  # what none has


def test_a_class_that_is_not_learned_has_no_probability():
    x, labels = rows(90, 300, classes=3)
    ((_, scores),) = regressions(x[labels < 2], labels[labels < 2], x[labels == 2], 3, [1.0])
    assert (scores[:, 2] == 0).all()
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    ((_, scores),) = regressions(x[labels == 1], labels[labels == 1], x, 3, [1.0])
    assert (scores.argmax(1) == 1).all()


def test_products_are_kept_by_the_smaller_space():
    random = np.random.default_rng(0)
    train, test = random.standard_normal((30, 500)), random.standard_normal((7, 500))
    small, asked = spanned(train, test)
    assert small.shape == (30, 30)
    np.testing.assert_allclose(small @ small.T, train @ train.T, atol=1e-9)
    np.testing.assert_allclose(asked @ small.T, test @ train.T, atol=1e-9)
    same, _ = spanned(train[:, :40], test[:, :40])  # where it would not pay
    assert same.shape == (30, 40)


def test_standardised_as_scikit_learn_with_constants_left():
    x, _ = rows(50, 20)
    x[:, 3] = 7.0
    train, test = standardised(x[:40], x[40:])
    scaler = StandardScaler().fit(x[:40])
    np.testing.assert_allclose(train, scaler.transform(x[:40]), atol=1e-5)
    np.testing.assert_allclose(test, scaler.transform(x[40:]), atol=1e-5)


def test_small_products_have_one_thread(monkeypatch):
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2):
        with limited_threads(400, 2048, 10):
            assert threads() == {1}
        monkeypatch.setattr(regression, "SMALL", 0)
        with limited_threads(400, 2048, 10):
            assert threads() == {2}
