"""Figures against scikit-learn's, with and without ties."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from torchbeats.evaluation import metrics

# Few levels make many ties.
SCORES = st.one_of(st.integers(0, 3).map(float), st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, -0.0, 0.5, 1.0]))


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 6)))
    return draw(arrays.arrays(bool, shape)), draw(arrays.arrays(np.float32, shape, elements=SCORES))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_measure_with_ties(problem):
    truth, scores = problem
    ap, auc = metrics.average_precision(truth, scores), metrics.roc_auc(truth, scores)
    for k in range(truth.shape[1]):
        if truth[:, k].any():
            np.testing.assert_allclose(ap[k], reference.average_precision_score(truth[:, k], scores[:, k]), atol=1e-12)
        else:
            assert math.isnan(ap[k])
        if truth[:, k].any() and not truth[:, k].all():
            np.testing.assert_allclose(auc[k], reference.roc_auc_score(truth[:, k], scores[:, k]), atol=1e-12)
        else:
            assert math.isnan(auc[k])
    found = metrics.lwlrap(truth, scores)
    if not truth.any():
        assert math.isnan(found)
    elif truth.shape[1] > 1:
        wanted = reference.label_ranking_average_precision_score(truth, scores, sample_weight=truth.sum(1))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    predicted = scores > 0.5
    exact = reference.precision_recall_fscore_support(truth, predicted, zero_division=0, average=None)[:3]
    if truth.shape[1] > 1:
        np.testing.assert_allclose(metrics.precision_recall_f1(truth, predicted), np.stack(exact, 1), atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_confusion(pairs):
    truth, predicted = np.array(pairs).T
    wanted = reference.confusion_matrix(truth, predicted, labels=range(5))
    np.testing.assert_array_equal(metrics.confusion(truth, predicted, 5), wanted)


def test_by_hand():
    """Truth at places 1 and 3: (1/1 + 2/3) / 2. Of four pairs with an outsider, three are the right way round."""
    truth, scores = np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.7], [0.1]])
    assert metrics.average_precision(truth, scores) == pytest.approx([5 / 6])
    assert metrics.roc_auc(truth, scores) == pytest.approx([0.75])
    # two labels, at places 1 and 3 of a row, and one at place 2 of another: (1 + 2/3 + 1/2) / 3
    assert metrics.lwlrap([[1, 0, 1], [0, 1, 0]], [[3, 2, 1], [3, 2, 1]]) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_d_prime():
    assert metrics.d_prime(0.5) == 0
    assert metrics.d_prime(0.959) == pytest.approx(2.46, abs=0.01)  # Hershey et al. 2017 and AudioSet papers pair these
    assert metrics.d_prime(1) == math.inf
    assert metrics.d_prime(0) == -math.inf
    assert math.isnan(metrics.d_prime(math.nan))


def test_single_label_report():
    generator = np.random.default_rng(0)
    truth, scores = generator.integers(0, 4, 200), generator.dirichlet(np.ones(5), 200)
    scores[np.arange(200), truth] += 0.3
    found = metrics.report(truth, scores, list("abcde"))  # nothing is an e
    predicted, there = scores.argmax(1), [0, 1, 2, 3]
    assert found.problem_type == "single_label"
    assert found.absent == ["e"]
    assert found.figures["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # e is predicted, and is in no truth
        balanced = reference.balanced_accuracy_score(truth, predicted)
    assert found.figures["balanced_accuracy"] == pytest.approx(balanced)
    f1 = reference.f1_score(truth, predicted, labels=there, average="macro", zero_division=0)
    assert found.figures["macro_f1"] == pytest.approx(f1)
    belongs = truth[:, None] == np.arange(5)
    wanted = reference.average_precision_score(belongs[:, :4], scores[:, :4], average="macro")
    assert found.figures["mAP"] == pytest.approx(wanted)
    auc = reference.roc_auc_score(belongs[:, :4], scores[:, :4], average="macro")
    assert found.figures["auc"] == pytest.approx(auc)
    assert found.figures["d_prime"] == pytest.approx(metrics.d_prime(auc))
    np.testing.assert_array_equal(found.confusion, reference.confusion_matrix(truth, predicted, labels=range(5)))
    assert [figures.examples for figures in found.classes] == np.bincount(truth, minlength=5).tolist()
    assert math.isnan(found.classes[4].ap)


def test_multi_label_report():
    generator = np.random.default_rng(1)
    truth, scores = generator.random((100, 6)) < 0.3, generator.random((100, 6))
    truth[:, 5] = False
    truth[0] = False
    found = metrics.report(truth.astype(np.float32), scores, list("abcdef"))
    assert found.confusion is None
    assert found.absent == ["f"]
    assert set(found.figures) == {"mAP", "auc", "d_prime", "lwlrap", "macro_f1"}
    wanted = reference.f1_score(truth[:, :5], scores[:, :5] >= 0.5, average="macro")
    assert found.figures["macro_f1"] == pytest.approx(wanted)
    wanted = reference.label_ranking_average_precision_score(truth, scores, sample_weight=truth.sum(1))
    assert found.figures["lwlrap"] == pytest.approx(wanted)


def test_what_is_refused():
    with pytest.raises(ValueError, match="must both be"):
        metrics.average_precision([[1, 0]], [[0.1]])
    with pytest.raises(ValueError, match="example 1 are not numbers"):
        metrics.roc_auc([[1], [0]], [[0.1], [np.nan]])
    with pytest.raises(ValueError, match="a score for each of 2 examples and 3 classes"):
        metrics.report([0, 1], np.zeros((2, 2)), list("abc"))
    with pytest.raises(ValueError, match="0 examples"):
        metrics.report(np.zeros(0, int), np.zeros((0, 2)), list("ab"))
