"""Which crops make a batch: a function of the seed and the batch's number alone.

Nothing here has a state that would have to be saved: a run that goes on at batch n asks for batch n. What one process
would train on, several share clip by clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from torchbeats.batching import batches_of_like_length
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.training.corpus import Corpus
from torchbeats.training.settings import DataSettings

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

LOOKAHEAD_BATCHES = 32  # crops are sorted by length among this many batches' worth


class Draw(NamedTuple):
    """One crop of a batch: of which sound, how long at most, and what seeds all else about it."""

    row: int
    seconds: float
    seed: tuple[int, int, int]  # of the run, the epoch, the crop in the epoch
    counts: bool = True  # False: it only fills up a process that would have nothing to do


class Batches:
    """Goes through the corpus in epochs without end: each sound once for every crop length that it has room for.

    Args:
        corpus: the sounds.
        data: settings.
        seed: of the run and the phase.
        grid: of the model's patches.
        first: number of the first batch wanted.
        rank: which share of each batch.
        world: how many there are.
        weights: ``(len(corpus),)``, how often each sound is drawn, beside the others; with them, an epoch draws
            with replacement.
        fill: go through a corpus of only a few batches several times in an epoch, so that batches are full.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: DataSettings,
        seed: int,
        grid: PatchGrid,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        weights: np.ndarray[Any, np.dtype[np.float64]] | None = None,
        fill: bool = True,
    ) -> None:
        self.crop_seconds = np.array(data.crop_seconds)
        self.batch_samples = data.batch_seconds * SAMPLE_RATE
        self.seed, self.grid = seed, grid
        self.first, self.rank, self.world = first, rank, world
        longest = np.nan_to_num(corpus.seconds, nan=float(self.crop_seconds.max()))
        self.known_seconds = np.where(np.isnan(corpus.seconds), np.inf, corpus.seconds)
        crop = self.crop_seconds.mean()
        rows: Integers = np.repeat(np.arange(len(corpus)), np.maximum(1, np.rint(longest / crop)).astype(int))
        samples = np.maximum(np.minimum(longest[rows], crop) * SAMPLE_RATE, grid.min_samples).sum()
        self.once = rows
        self.rows = np.tile(rows, max(1, round(LOOKAHEAD_BATCHES * self.batch_samples / samples))) if fill else rows
        self.weights = weights

    def __iter__(self) -> Iterator[list[Draw]]:
        number = 0
        for epoch in range(2**62):
            for batch in self._epoch(epoch, self.rows):
                if number >= self.first:
                    # A process without a share trains on a clip that does not count, so that all keep step.
                    share = batch[self.rank :: self.world] or [batch[0]._replace(counts=False)]
                    yield share
                number += 1

    def pass_once(self) -> Iterator[list[Draw]]:
        """Each sound as in `rows`, though a small corpus only once."""
        return self._epoch(0, self.once)

    def _epoch(self, epoch: int, rows: Integers) -> Iterator[list[Draw]]:
        random = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            order = random.permutation(len(rows))
        else:
            weights = self.weights[rows] / np.bincount(rows)[rows]  # a long sound has several rows
            order = random.choice(len(rows), len(rows), p=weights / weights.sum())
        seconds = random.choice(self.crop_seconds, len(order))
        lengths = np.minimum(self.known_seconds[rows[order]], seconds) * SAMPLE_RATE
        samples = np.maximum(np.ceil(lengths).astype(int), self.grid.min_samples)
        lookahead = (np.cumsum(samples) // (LOOKAHEAD_BATCHES * self.batch_samples)).astype(int)
        for group in np.split(np.arange(len(order)), np.flatnonzero(np.diff(lookahead)) + 1):
            batches = list(batches_of_like_length(samples[group].tolist(), self.batch_samples))
            for number in random.permutation(len(batches)):
                indices = group[batches[number]]
                yield [Draw(int(rows[order[i]]), float(seconds[i]), (self.seed, epoch, int(i))) for i in indices]
