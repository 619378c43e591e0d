"""Vectors → places on a plane, by UMAP or by their principal components; the same for the same seed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from torchbeats.audio import Floats
from torchbeats.errors import SettingsError
from torchbeats.extras import require

METHODS = ("umap", "pca")
NEIGHBOURS = 15  # of each point, which UMAP keeps near it
COMPONENTS = 50  # that UMAP works on: the others are mostly noise, and cost most of the time
FEWEST = NEIGHBOURS + 1  # points that have so many neighbours
EXACT_UP_TO = 600  # rows or columns of a matrix that is decomposed exactly


def reduce(vectors: Floats, method: str = "umap", seed: int = 0) -> Floats:
    """Places on a plane at which like vectors lie together.

    Args:
        vectors: ``(N, D)``, of length 1, so that distances go with cosines.
        method: "umap" (McInnes et al., arXiv 1802.03426), which keeps neighbours together; or "pca", the two directions
            in which the vectors differ most, which keeps distances as far as a plane can. Of fewer than `FEWEST`
            vectors it is always "pca".
        seed: random seed.

    Returns:
        ``(N, 2)`` float32.

    Raises:
        SettingsError: there is no such method.
        MissingPackageError: umap-learn is not installed.
    """
    if method not in METHODS:
        raise SettingsError(f"The method is {' or '.join(METHODS)}, not {method!r}.")
    if method == "pca" or len(vectors) < FEWEST:
        return principal_components(vectors, 2, seed)
    umap = _umap()
    components = principal_components(vectors, COMPONENTS, seed)
    start = components[:, :2] / max(float(components[:, 0].std()), 1e-12)
    model = umap.UMAP(n_neighbors=NEIGHBOURS, init=start, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries below it, about what they were called with
        places: Any = model.fit_transform(components)
    return np.asarray(places, np.float32)


def _umap() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TensorFlow, which nothing here needs, is not installed
        return require("umap", "map")


def principal_components(vectors: Floats, count: int, seed: int = 0) -> Floats:
    """``(N, count)`` coordinates along the directions of largest variance, the largest first.

    Args:
        vectors: ``(N, D)``.
        count: of directions; where there are fewer, the others are zeros.
        seed: random seed, for matrices so large that they are decomposed by random projections (Halko et al. 2011).
    """
    centred = vectors - vectors.mean(0, dtype=np.float64).astype(np.float32)
    if min(centred.shape) <= EXACT_UP_TO:
        left, singular, right = np.linalg.svd(centred, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(torch.from_numpy(centred), count + 10, niter=4)
        left, singular, right = u.numpy(), s.numpy(), v.T.numpy()
    count_here = min(count, len(singular))
    places = left[:, :count_here] * singular[:count_here]
    # A direction is as good as its opposite; the one along which the largest weight is positive does not depend on the
    # library that decomposed.
    signs = np.sign(_largest(right[:count_here]))
    result = np.zeros((len(vectors), count), np.float32)
    result[:, :count_here] = places * np.where(signs == 0, 1, signs)
    return result


def _largest(rows: Floats) -> Floats:
    """Of each row the value that is farthest from zero."""
    return rows[np.arange(len(rows)), np.abs(rows).argmax(1)]
