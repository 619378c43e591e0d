"""What the points of a map are coloured by: clusters, files, or labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from torchbeats.audio import Floats
from torchbeats.plots.scatter import COLOURS
from torchbeats.tagging import Indices
from torchbeats.tokenizers.codebook import spherical_kmeans

CLUSTERS = 10
ROUNDS = 30


class Groups(NamedTuple):
    """Points with the same colour.

    Attributes:
        names: of the groups, the largest first.
        of: ``(N,)``, each point's group; -1 for none.
    """

    names: list[str]
    of: Indices


def by_value(values: Sequence[Hashable | None], names: Mapping[Any, str], others: str) -> Groups:
    """A group for each value, as far as there are colours; the least frequent share one.

    Args:
        values: of each point; None for none.
        names: of the values; of groups of the same size the one that is named first here comes first.
        others: name of the group of the least frequent.
    """
    counts = Counter(value for value in values if value is not None)
    rank = {value: number for number, value in enumerate(names)}
    order = sorted(counts, key=lambda value: (-counts[value], rank[value]))
    most = len(COLOURS)
    own = order if len(order) <= most else order[: most - 1]
    places = {value: number for number, value in enumerate(own)}
    titles = [names[value] for value in own]
    if len(order) > most:
        titles.append(f"{len(order) - len(own):,} {others}")
    index = [-1 if value is None else places.get(value, most - 1) for value in values]
    return Groups(titles, np.array(index, np.intp))


def by_cluster(vectors: Floats, clusters: int, seed: int = 0) -> Groups:
    """Clusters of like vectors, by k-means under cosine similarity.

    Args:
        vectors: ``(N, D)``, of length 1.
        clusters: at most so many.
        seed: random seed.
    """
    units = torch.from_numpy(np.ascontiguousarray(vectors))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        means, _ = spherical_kmeans(units, min(clusters, len(vectors)), ROUNDS)
    nearest = (units @ means.T).argmax(1).tolist()
    order = {value: number for number, (value, _) in enumerate(Counter(nearest).most_common(), start=1)}
    numbers: list[Hashable | None] = [order[value] for value in nearest]
    return by_value(numbers, {number: f"cluster {number}" for number in sorted(order.values())}, "other clusters")
