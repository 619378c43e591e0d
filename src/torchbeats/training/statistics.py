"""Mean and standard deviation of a corpus's log-mel features, by which models normalise them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torchbeats.errors import CorpusError
from torchbeats.fbank import Fbank
from torchbeats.patches import SAMPLE_RATE, PatchGrid, frames, mask_behind
from torchbeats.training.batches import Batches
from torchbeats.training.corpus import Corpus
from torchbeats.training.crops import Batch, Crops, collate
from torchbeats.training.settings import DataSettings


@torch.no_grad()
def fbank_statistics(
    corpus: Corpus, data: DataSettings, seed: int, on_batch: Callable[[Batch], None]
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel features of a sample of the corpus, frames of padding apart.

    Args:
        corpus: the sounds.
        data: settings: ``statistics_seconds`` of audio are looked at, unless an epoch has less.
        seed: of the run.
        on_batch: called behind every batch.

    Raises:
        CorpusError: none of the sounds looked at can be decoded, or all are digital silence.
    """
    grid, fbank = PatchGrid(), Fbank()
    plain = DataSettings(crop_seconds=data.crop_seconds, batch_seconds=max(60.0, *data.crop_seconds))
    count, total, squares, seconds = 0, 0.0, 0.0, 0.0
    crops, failures = Crops(corpus, plain, grid), []
    for draws in Batches(corpus, plain, seed, grid).pass_once():
        batch = collate((crops[draw] for draw in draws), grid)
        on_batch(batch)
        failures += batch.failures
        if len(batch.failures) == len(draws):
            continue
        features = fbank(batch.wav).double()
        real = features[~mask_behind(frames(batch.samples), features.size(1))]
        count, total, squares = count + real.numel(), total + float(real.sum()), squares + float(real.square().sum())
        seconds += float(batch.samples.sum()) / SAMPLE_RATE
        if seconds >= data.statistics_seconds:
            break
    if not count:
        raise CorpusError(f"There is nothing to learn from: no sound could be decoded. The first, {failures[0]}.")
    mean = total / count
    variance = squares / count - mean**2
    deviation = variance**0.5 if variance > 0 else variance * 0  # not a number stays none
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise CorpusError(
            "The mean and deviation of the log-mel features are not finite: some sounds hold absurd samples."
        )
    if deviation < 1e-3:
        raise CorpusError("There is nothing to learn from: all of the sounds looked at are silence.")
    return mean, deviation
