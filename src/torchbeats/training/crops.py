"""Crops of sounds, read and changed in worker processes, and put together as batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchbeats.audio import Floats
from torchbeats.errors import AudioError
from torchbeats.patches import SAMPLE_RATE, PatchGrid
from torchbeats.training.augmentation import CURVE_TERMS, augment_waveform, equaliser_curve
from torchbeats.training.batches import Draw
from torchbeats.training.corpus import Corpus, Failure
from torchbeats.training.settings import DataSettings

UNKNOWN_SECONDS = 120.0  # what is decoded of a sound whose length no header tells

C = TypeVar("C", covariant=True)


class Excerpts(Dataset[C]):
    """Reads pieces of a corpus's sounds.

    Args:
        corpus: the sounds.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def sound(self, draw: Draw, random: np.random.Generator) -> Floats | Failure:
        """A crop as it is in the file, or why there is none."""
        try:
            return self._read(draw, random.random())
        except AudioError as error:
            return Failure(self.corpus.path(draw.row), error.reason)
        except Exception as error:  # a decoder's surprise must not end the run
            return Failure(self.corpus.path(draw.row), f"decoding failed with {error!r}")

    def _read(self, draw: Draw, position: float) -> Floats:
        """The crop that begins at the share ``position`` of what the sound has room for."""
        seconds = float(self.corpus.seconds[draw.row])
        if np.isnan(seconds):  # then it has to be decoded to be known
            samples = self.corpus.read(draw.row, 0.0, UNKNOWN_SECONDS)
            length = round(draw.seconds * SAMPLE_RATE)
            first = int(position * max(0, len(samples) - length))
            return samples[first : first + length]
        start = position * max(0.0, seconds - draw.seconds)
        try:
            return self.corpus.read(draw.row, start, draw.seconds)
        except AudioError:
            if not start:
                raise
            return self.corpus.read(draw.row, 0.0, draw.seconds)  # the file is shorter than its header says


class Crop(NamedTuple):
    """A piece of a sound, and which of its patches are hidden from the model."""

    samples: Floats
    hidden: np.ndarray[Any, np.dtype[np.bool_]]  # (T,)
    shift: int = 0  # mel bins that the model hears it higher
    curve: tuple[float, ...] = ()  # of the equaliser that it hears it through; see `augmentation.equalise`
    counts: bool = True
    path: str = ""


class Crops(Excerpts["Crop | Failure"]):
    """Reads crops.

    Args:
        corpus: the sounds.
        data: settings; whether and how sounds are changed among them.
        grid: of the model's patches.
        mask: share of the patches that are hidden.
        mel_shift: the model is to hear each clip up to this many mel bins higher or lower.
        equaliser_db: and through an equaliser of about this depth.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: DataSettings,
        grid: PatchGrid,
        mask: float = 0.0,
        mel_shift: int = 0,
        equaliser_db: float = 0.0,
    ) -> None:
        super().__init__(corpus)
        self.data, self.grid = data, grid
        self.mask, self.mel_shift, self.equaliser_db = mask, mel_shift, equaliser_db

    def __getitem__(self, draw: Draw) -> Crop | Failure:
        random = np.random.default_rng(draw.seed)
        samples = self.sound(draw, random)
        if isinstance(samples, Failure):
            return samples
        samples = augment_waveform(samples, random, self.data.gain_db, self.data.band_limited)
        patches = int(self.grid.patches(max(len(samples), self.grid.min_samples)))
        shift = int(random.integers(-self.mel_shift, self.mel_shift + 1))
        hidden = random_mask(patches, self.mask, random)
        return Crop(
            samples, hidden, shift, equaliser_curve(self.equaliser_db, random), draw.counts, self.corpus.path(draw.row)
        )


def random_mask(patches: int, share: float, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Hide a share of the patches, but never all of them: ``(patches,)``, True = hidden (BEATs, section 3.3)."""
    hidden = np.zeros(patches, bool)
    hidden[random.permutation(patches)[: min(round(share * patches), patches - 1)]] = True
    return hidden


class Batch(NamedTuple):
    """Crops of like length, padded to the longest.

    Attributes:
        wav: ``(B, samples)``, zero behind each crop.
        samples: ``(B,)`` int64, length of each.
        visible: ``(B, K)`` int64, the patches that the model sees, in order; 0 behind each row's own.
        visible_counts: ``(B,)`` int64, how many those are.
        hidden: ``(B, T)`` bool, the patches that it does not see.
        target_indices: ``(M,)`` int64, the patches whose labels it is to say, as indices into ``B * T``.
        shifts: ``(B,)`` int64, mel bins that the model is to hear each crop higher.
        curves: ``(B, K)``, the equaliser that it hears each through.
        failures: sounds that could not be read, and are not in the batch.
        paths: names of the sounds in it.
    """

    wav: Tensor
    samples: Tensor
    visible: Tensor
    visible_counts: Tensor
    hidden: Tensor
    target_indices: Tensor
    shifts: Tensor
    curves: Tensor
    failures: list[Failure]
    paths: Sequence[str] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors: Any = [part.to(device) if isinstance(part, Tensor) else part for part in self]
        return Batch(*tensors)


def collate(items: Iterable[Crop | Failure], grid: PatchGrid) -> Batch:
    """Put crops together. Where none could be read, one of silence stands in, of which nothing is asked."""
    items = list(items)
    crops = [item for item in items if isinstance(item, Crop)]
    if not crops:
        crops = [Crop(np.zeros(grid.min_samples, np.float32), np.zeros(grid.bands, bool), counts=False)]
    lengths = [max(len(crop.samples), grid.min_samples) for crop in crops]
    wav = torch.zeros(len(crops), max(lengths))
    hidden = torch.zeros(len(crops), int(grid.patches(max(lengths))), dtype=torch.bool)
    is_target = torch.zeros_like(hidden)
    visible_indices = torch.zeros(len(crops), max(int((~crop.hidden).sum()) for crop in crops), dtype=torch.long)
    visible_counts = torch.zeros(len(crops), dtype=torch.long)
    for row, crop in enumerate(crops):
        wav[row, : len(crop.samples)] = torch.from_numpy(crop.samples)
        hidden[row, : len(crop.hidden)] = torch.from_numpy(crop.hidden)
        if crop.counts:  # where nothing is hidden, every patch is asked for
            is_target[row, : len(crop.hidden)] = torch.from_numpy(crop.hidden | ~crop.hidden.any())
        visible = np.flatnonzero(~crop.hidden)
        visible_indices[row, : len(visible)] = torch.from_numpy(visible)
        visible_counts[row] = len(visible)
    return Batch(
        wav,
        samples=torch.tensor(lengths),
        visible=visible_indices,
        visible_counts=visible_counts,
        hidden=hidden,
        target_indices=is_target.flatten().nonzero().squeeze(1),
        shifts=torch.tensor([crop.shift for crop in crops]),
        curves=torch.tensor([crop.curve or (0.0,) * CURVE_TERMS for crop in crops]),
        failures=[item for item in items if isinstance(item, Failure)],
        paths=[crop.path for crop in crops if crop.counts],
    )


@dataclass
class Collate:
    """`collate` for one grid; a class, so that it can be sent to another process."""

    grid: PatchGrid

    def __call__(self, items: list[Crop | Failure]) -> Batch:
        """As `collate`."""
        return collate(items, self.grid)
