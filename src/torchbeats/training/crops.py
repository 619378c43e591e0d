"""Crops of sounds, read and changed in worker processes, and put together as batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

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

SOFTEST_DB = 15.0  # by which what is laid on top of a clip is softer at most

C = TypeVar("C", covariant=True)
Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


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
    hidden: Mask  # (T,), or of several draws (draws, T)
    shift: int = 0  # mel bins that the model hears it higher
    curve: tuple[float, ...] = ()  # of the equaliser that it hears it through; see `augmentation.equalise`
    counts: bool = True
    path: str = ""
    softer: float = math.inf  # decibels that the next of the batch is softer where the model hears both


class Crops(Excerpts["Crop | Failure"]):
    """Reads crops.

    Args:
        corpus: the sounds.
        data: settings; whether and how sounds are changed among them.
        grid: of the model's patches.
        mask: share of the patches that are hidden.
        mask_block: those that are not come in blocks of this many steps and bands.
        masks: draws of what is hidden.
        mix: share of the crops which the model hears together with the next of the batch.
        mel_shift: the model is to hear each clip up to this many mel bins higher or lower.
        equaliser_db: and through an equaliser of about this depth.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: DataSettings,
        grid: PatchGrid,
        mask: float = 0.0,
        mask_block: int = 1,
        masks: int = 1,
        mix: float = 0.0,
        mel_shift: int = 0,
        equaliser_db: float = 0.0,
    ) -> None:
        super().__init__(corpus)
        self.data, self.grid = data, grid
        self.mask, self.mask_block, self.masks = mask, mask_block, masks
        self.mix, self.mel_shift, self.equaliser_db = mix, mel_shift, equaliser_db

    def __getitem__(self, draw: Draw) -> Crop | Failure:
        random = np.random.default_rng(draw.seed)
        samples = self.sound(draw, random)
        if isinstance(samples, Failure):
            return samples
        samples = augment_waveform(samples, random, self.data.gain_db, self.data.band_limited)
        patches = int(self.grid.patches(max(len(samples), self.grid.min_samples)))
        shift = int(random.integers(-self.mel_shift, self.mel_shift + 1))
        first = self._hide(patches, random)
        curve = equaliser_curve(self.equaliser_db, random)
        mixed, softer = random.random() < self.mix, random.uniform(0, SOFTEST_DB)
        hidden = np.stack([first, *(self._hide(patches, random) for _ in range(self.masks - 1))])
        path = self.corpus.path(draw.row)
        return Crop(samples, hidden, shift, curve, draw.counts, path, softer if mixed else math.inf)

    def _hide(self, patches: int, random: np.random.Generator) -> Mask:
        if self.mask_block == 1:
            return random_mask(patches, self.mask, random)
        return inverse_block_mask(patches, self.grid.bands, self.mask, self.mask_block, random)


def random_mask(patches: int, share: float, random: np.random.Generator) -> Mask:
    """Hide a share of the patches, but never all of them: ``(patches,)``, True = hidden (BEATs, section 3.3)."""
    hidden = np.zeros(patches, bool)
    hidden[random.permutation(patches)[: min(round(share * patches), patches - 1)]] = True
    return hidden


def inverse_block_mask(patches: int, bands: int, share: float, block: int, random: np.random.Generator) -> Mask:
    """The same, where patches that are seen come in blocks of ``block`` steps and bands (EAT, arXiv 2401.03497).

    Blocks may overlap, and reach over the edges, so that each patch is seen as often as any other; the last is seen in
    part, so that as many patches are hidden as by `random_mask`.
    """
    steps = patches // bands
    seen = np.zeros((steps, bands), bool)
    lacking = patches - min(round(share * patches), patches - 1)
    if lacking == patches:
        return seen.reshape(-1)
    while lacking:
        step, band = random.integers(1 - block, steps), random.integers(1 - block, bands)
        within = seen[max(0, step) : step + block, max(0, band) : band + block]
        new = np.argwhere(~within)
        if len(new) > lacking:
            new = random.permutation(new)[:lacking]
        within[new[:, 0], new[:, 1]] = True
        lacking -= len(new)
    return ~seen.reshape(-1)


class Batch(NamedTuple):
    """Crops of like length, padded to the longest.

    Attributes:
        wav: ``(B, samples)``, zero behind each crop.
        samples: ``(B,)`` int64, length of each.
        visible: ``(B * draws, K)`` int64, the patches that the model sees, in order; 0 behind each row's own. The draws
            of a crop follow each other.
        visible_counts: ``(B * draws,)`` int64, how many those are.
        hidden: ``(B * draws, T)`` bool, the patches that it does not see.
        target_indices: ``(M,)`` int64, the patches whose labels it is to say, as indices into ``B * draws * T``.
        shifts: ``(B,)`` int64, mel bins that the model is to hear each crop higher.
        curves: ``(B, K)``, the equaliser that it hears each through.
        softer: ``(B,)``, decibels that the next crop is softer that it hears with each; infinite where there is none.
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
    softer: Tensor
    failures: list[Failure]
    paths: Sequence[str] = ()

    @property
    def draws(self) -> int:
        """Masks of each crop."""
        return len(self.hidden) // len(self.wav)

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
    for row, crop in zip(wav, crops, strict=True):
        row[: len(crop.samples)] = torch.from_numpy(crop.samples)
    masks = [(mask, crop.counts) for crop in crops for mask in np.atleast_2d(crop.hidden)]
    hidden = torch.zeros(len(masks), int(grid.patches(max(lengths))), dtype=torch.bool)
    is_target = torch.zeros_like(hidden)
    visible_indices = torch.zeros(len(masks), max(int((~mask).sum()) for mask, _ in masks), dtype=torch.long)
    visible_counts = torch.zeros(len(masks), dtype=torch.long)
    for row, (mask, counts) in enumerate(masks):
        hidden[row, : len(mask)] = torch.from_numpy(mask)
        if counts:  # where nothing is hidden, every patch is asked for
            is_target[row, : len(mask)] = torch.from_numpy(mask | ~mask.any())
        visible = np.flatnonzero(~mask)
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
        softer=torch.tensor([crop.softer for crop in crops]),
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
