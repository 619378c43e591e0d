"""Which windows of a table are worth labelling next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from torchbeats.audio import Floats
from torchbeats.evaluation.metrics import Array
from torchbeats.heads.fitting import Head
from torchbeats.tables.reading import Table
from torchbeats.tagging import Indices

CANDIDATES = 20  # for each window that is suggested
RARE_SHARE = 0.4  # of the suggestions, likely windows of the classes with the fewest labels; the others are uncertain


class Suggestion(NamedTuple):
    """A window to label.

    Attributes:
        path: of the file.
        start: in seconds.
        end: in seconds.
        label: the class that it is suggested for.
        probability: of that class.
        reason: "uncertain" or "rare class".
    """

    path: str
    start: float
    end: float
    label: str
    probability: float
    reason: str


def suggest(table: Table, head: Head, labelled: Indices, count: int) -> list[Suggestion]:
    """Windows that would teach the head most: uncertain ones, and likely ones of rare classes, none like another.

    Args:
        table: of windows.
        head: fitted to some of them.
        labelled: indices of those.
        count: how many.
    """
    pools = [_Pool(CANDIDATES * count) for _ in range(2)]
    rarity = 1 / (1 + np.array([row["windows"] for row in head.by_class], np.float64))
    is_labelled = np.zeros(table.count, bool)
    is_labelled[labelled] = True
    for rows in table.rows():
        free = np.flatnonzero(~is_labelled[rows.first : rows.first + len(rows.paths)])
        if not len(free):
            continue
        values = rows.values[free]
        probabilities = head.probabilities(values.astype(np.float64))
        uncertainty = (
            1 - np.abs(2 * probabilities - 1).min(1) if head.problem_type == "multi_label" else _entropy(probabilities)
        )
        windows = [(rows.paths[i], *rows.times[i].tolist()) for i in free]
        classes = np.abs(2 * probabilities - 1).argmin(1) if head.problem_type == "multi_label" else None
        uncertain = probabilities.argmax(1) if classes is None else classes
        pools[0].add(uncertainty, values, windows, uncertain, probabilities)
        rare = probabilities * rarity
        pools[1].add(rare.max(1), values, windows, rare.argmax(1), probabilities)
    rare_count = min(round(RARE_SHARE * count), pools[1].size)
    suggestions: list[Suggestion] = []
    seen: set[tuple[str, float, float]] = set()
    vectors: list[Floats] = []
    for pool, limit, reason in ((pools[1], rare_count, "rare class"), (pools[0], count, "uncertain")):
        for window, label, probability in pool.spread(limit - len(suggestions), vectors, seen):
            suggestions.append(Suggestion(*window, head.classes[label], probability, reason))
    return suggestions


def _entropy(probabilities: Array) -> Array:
    return -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1)


class _Pool:
    """The best candidates so far, so that a table of any length takes the same memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._scores = np.empty(0)
        self._vectors = np.empty((0, 0), np.float32)
        self._candidates: list[tuple[tuple[str, float, float], int, float]] = []

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self._candidates)

    def add(
        self,
        scores: Array,
        values: Floats,
        windows: list[tuple[str, float, float]],
        labels: Array,
        probabilities: Array,
    ) -> None:
        """Take more, and keep the best."""
        unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        self._scores = np.concatenate([self._scores, scores])
        self._vectors = np.concatenate([self._vectors, unit]) if self._candidates else unit
        self._candidates += [
            (window, int(label), float(row[label]))
            for window, label, row in zip(windows, labels, probabilities, strict=True)
        ]
        best = np.sort(np.argsort(-self._scores, kind="stable")[: self._limit])
        self._scores, self._vectors = self._scores[best], self._vectors[best]
        self._candidates = [self._candidates[i] for i in best]

    def spread(
        self, count: int, vectors: list[Floats], seen: set[tuple[str, float, float]]
    ) -> list[tuple[tuple[str, float, float], int, float]]:
        """So many of them, each far from those before: the score times the distance to the nearest decides."""
        result = []
        span = self._scores.max(initial=1e-12)
        similarity = np.full(len(self._candidates), -1.0)
        for vector in vectors:
            similarity = np.maximum(similarity, self._vectors @ vector)
        available = np.array([window not in seen for window, *_ in self._candidates], bool)
        for _ in range(min(max(0, count), int(available.sum()))):
            priority = np.where(available, self._scores / span * (1 - similarity + 1e-3), -np.inf)
            best = int(priority.argmax())
            available[best] = False
            vectors.append(self._vectors[best])
            seen.add(self._candidates[best][0])
            similarity = np.maximum(similarity, self._vectors @ self._vectors[best])
            result.append(self._candidates[best])
        return result
