"""Labelled sounds → crops, changed and mixed → batches."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.data.example import Example
from torchbeats.data.labelled import Labelled
from torchbeats.errors import AudioError
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.training.augmentation import CURVE_TERMS, add_noise, augment_waveform, change_speed, equaliser_curve
from torchbeats.training.batches import Draw
from torchbeats.training.corpus import Corpus, Failure
from torchbeats.training.crops import Excerpts
from torchbeats.training.settings import AugmentationSettings, DataSettings, LabelledDataSettings


class LabelledCorpus(Corpus):
    """Examples as a corpus to draw crops from.

    Args:
        labelled: the examples.
    """

    def __init__(self, labelled: Labelled) -> None:
        self.examples = labelled.examples
        self.targets = one_hot(labelled)
        ends = [_length(example) for example in labelled.examples]
        table = pa.table({
            "path": [os.fsencode(example.path) for example in labelled.examples],
            "seconds": pa.array(ends, pa.float32()),
            "shard": pa.nulls(len(ends), pa.binary()),
            "offset": pa.nulls(len(ends), pa.int64()),
            "size": pa.nulls(len(ends), pa.int64()),
        })  # fmt: skip
        super().__init__(table)

    def read(self, row: int, start: float, seconds: float) -> Floats:
        """A piece of an example; see `audio.excerpt`."""
        example = self.examples[row]
        if example.end is not None:
            seconds = min(seconds, example.end - example.start - start)
        sound = example.path if example.content is None else example.content.open()
        return audio.excerpt(sound, example.start + start, seconds)


def one_hot(labelled: Labelled) -> Floats:
    """``(N, classes)`` float32, one where an example belongs."""
    targets = labelled.targets()
    return targets if targets.ndim == 2 else np.eye(len(labelled.classes), dtype=np.float32)[targets]


def _length(example: Example) -> float:
    """Seconds of an example; NaN where no header tells, or the file cannot be read, which training will find out."""
    if example.end is not None:
        return example.end - example.start
    if example.content is not None:
        return math.nan
    try:
        seconds = audio.duration(example.path)
    except AudioError:
        return math.nan
    return math.nan if seconds is None else max(0.0, seconds - example.start)


class LabelledCrop(NamedTuple):
    """A piece of an example."""

    samples: Floats
    target: Floats  # (classes,)
    mix: float  # share that is left to it when it is mixed with another
    shift: int
    curve: tuple[float, ...]
    counts: bool
    path: str = ""


class LabelledBatch(NamedTuple):
    """Crops of like length, mixed and padded.

    Attributes:
        wav: ``(B, samples)``, zero behind each crop.
        samples: ``(B,)`` int64, length of each.
        targets: ``(B, classes)``, how much of each class is in it.
        shifts: ``(B,)`` int64, mel bins that it is heard higher.
        curves: ``(B, K)``, the equaliser that it is heard through.
        counts: ``(B,)``, one, or zero for what only fills up.
        failures: sounds that could not be read, and are not in the batch.
        paths: names of the sounds in it.
    """

    wav: Tensor
    samples: Tensor
    targets: Tensor
    shifts: Tensor
    curves: Tensor
    counts: Tensor
    failures: list[Failure]
    paths: Sequence[str] = ()


class LabelledCrops(Excerpts["LabelledCrop | Failure"]):
    """Reads and changes crops of examples.

    Args:
        corpus: the examples.
        augment: how crops are changed.
    """

    corpus: LabelledCorpus

    def __init__(self, corpus: LabelledCorpus, augment: AugmentationSettings) -> None:
        super().__init__(corpus)
        self.augment = augment

    def __getitem__(self, draw: Draw) -> LabelledCrop | Failure:
        random = np.random.default_rng(draw.seed)
        samples = self.sound(draw, random)
        if isinstance(samples, Failure):
            return samples
        a = self.augment
        samples = augment_waveform(samples, random, a.gain_db, a.band_limited)
        if a.speed and len(samples):
            samples = change_speed(samples, 1 + random.uniform(-a.speed, a.speed))
        if a.noise and random.random() < a.noise and len(samples) > 1:
            samples = add_noise(samples, random)
        if a.delay:
            later = int(random.integers(round(a.delay * SAMPLE_RATE) + 1))
            samples = audio.delay(samples, later, random)
        if a.roll:
            samples = np.roll(samples, random.integers(len(samples)))
        mix = max(share := random.beta(a.mixup, a.mixup), 1 - share) if a.mixup else 1.0
        shift = int(random.integers(-a.mel_shift, a.mel_shift + 1))
        curve = equaliser_curve(a.equaliser_db, random)
        return LabelledCrop(
            samples, self.corpus.targets[draw.row], mix, shift, curve, draw.counts, self.corpus.path(draw.row)
        )


def as_data(data: LabelledDataSettings) -> DataSettings:
    """The same settings, as a corpus without labels has them."""
    return DataSettings(crop_seconds=[data.seconds], batch_seconds=data.batch_seconds, workers=data.workers)


def collate_labelled(items: Iterable[LabelledCrop | Failure], grid: PatchGrid, classes: int) -> LabelledBatch:
    """Put crops together, each mixed with the one behind it. Where none could be read, silence that does not count."""
    items = list(items)
    crops = [item for item in items if isinstance(item, LabelledCrop)]
    if not crops:
        silence, no_labels = np.zeros(grid.min_samples, np.float32), np.zeros(classes, np.float32)
        crops = [LabelledCrop(silence, no_labels, 1.0, 0, (0.0,) * CURVE_TERMS, False)]
    lengths = torch.tensor([max(len(crop.samples), grid.min_samples) for crop in crops])
    wav = torch.zeros(len(crops), int(lengths.max()))
    for row, crop in zip(wav, crops, strict=True):
        row[: len(crop.samples)] = torch.from_numpy(crop.samples)
    targets = torch.from_numpy(np.stack([crop.target for crop in crops]))
    mix = torch.tensor([crop.mix for crop in crops], dtype=torch.float32).unsqueeze(1)
    if bool((mix < 1).any()):
        wav, targets = mix * wav + (1 - mix) * wav.roll(1, 0), mix * targets + (1 - mix) * targets.roll(1, 0)
        lengths = torch.maximum(lengths, lengths.roll(1, 0))
    return LabelledBatch(
        wav,
        lengths,
        targets,
        shifts=torch.tensor([crop.shift for crop in crops]),
        curves=torch.tensor([crop.curve for crop in crops]),
        counts=torch.tensor([float(crop.counts) for crop in crops]),
        failures=[item for item in items if isinstance(item, Failure)],
        paths=[crop.path for crop in crops if crop.counts],
    )


@dataclasses.dataclass
class Collate:
    """`collate_labelled` for one grid; a class, so that it can be sent to another process."""

    grid: PatchGrid
    classes: int

    def __call__(self, items: list[LabelledCrop | Failure]) -> LabelledBatch:
        """As `collate_labelled`."""
        return collate_labelled(items, self.grid, self.classes)


def class_weights(targets: Floats, balance: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``(N,)``, how often to draw each example, by its rarest class; to have none is one more class.

    Args:
        targets: ``(N, classes)``.
        balance: 1: all classes come equally often; 0.5: by the square roots of their counts.
    """
    targets = np.concatenate([targets, ~targets.any(1, keepdims=True)], 1)
    rarity = np.maximum(targets.sum(0), 1).astype(np.float64) ** -balance
    weights: np.ndarray[Any, np.dtype[np.float64]] = (targets * rarity).max(1)
    return weights
