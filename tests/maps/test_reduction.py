"""Places on a plane: principal components against their definition, UMAP for what it is used for."""

import sys

import numpy as np
import pytest

from helpers import forking
from torchbeats import MissingPackageError, SettingsError
from torchbeats.extras import is_installed
from torchbeats.maps import reduction
from torchbeats.maps.reduction import FEWEST, principal_components, reduce
from torchbeats.search.queries import unit


def groups(count, width=24, seed=0):
    """Unit vectors of three kinds, and which is of which."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((3, width))
    kinds = np.arange(count) % 3
    return unit((centres[kinds] + 0.15 * random.standard_normal((count, width))).astype(np.float32)), kinds


@pytest.mark.parametrize("exact", [True, False])
def test_principal_components(monkeypatch, exact):
    if not exact:
        monkeypatch.setattr(reduction, "EXACT_UP_TO", 0)
    vectors = np.random.default_rng(0).standard_normal((300, 40)) * np.linspace(5, 1, 40)
    places = principal_components(vectors.astype(np.float32), 2)
    centred = vectors - vectors.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred)
    expected = centred @ directions[:, [-1, -2]]
    expected *= np.sign((expected * places).sum(0))
    # Random projections find a direction to a part of its length, as its neighbours are nearly as long.
    np.testing.assert_allclose(places, expected, atol=1e-3 if exact else 0.5)
    np.testing.assert_allclose((places**2).sum(0), values[[-1, -2]], rtol=1e-4 if exact else 1e-2)
    np.testing.assert_array_equal(places, principal_components(vectors.astype(np.float32), 2))


def test_directions_do_not_depend_on_the_sign_of_the_decomposition():
    vectors = groups(60)[0]
    np.testing.assert_allclose(principal_components(vectors, 2), -principal_components(-vectors, 2), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points(count):
    places = reduce(groups(count)[0], "umap")
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def uncompiled(vectors, seeds, out):
    """In a new process: UMAP by plain Python, which for few points takes less time than Numba needs to compile."""
    import numba

    numba.config.DISABLE_JIT = True
    np.save(out, np.stack([reduce(vectors, "umap", seed) for seed in seeds]))


def test_umap_keeps_neighbours_together_and_is_the_same_for_a_seed(tmp_path):
    if not is_installed("umap"):
        pytest.skip("needs umap-learn")
    vectors, kinds = groups(30)
    process = forking().Process(target=uncompiled, args=(vectors, (3, 3, 4), tmp_path / "places.npy"))
    process.start()
    process.join(300)
    places, again, other = np.load(tmp_path / "places.npy")
    distances = np.linalg.norm(places[:, np.newaxis] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (kinds[distances.argmin(1)] == kinds).all()
    np.testing.assert_array_equal(places, again)
    assert np.abs(places - other).max() > 0.01


def test_what_is_refused(monkeypatch):
    vectors = groups(FEWEST)[0]
    with pytest.raises(SettingsError, match="umap or pca, not 'tsne'"):
        reduce(vectors, "tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingPackageError, match=r"torchbeats\[map\]"):
        reduce(vectors, "umap")
    assert reduce(vectors, "pca").shape == (FEWEST, 2)
