"""Samples, frames, steps, patches and seconds: the arithmetic of the patch grid, in this one place.

    samples --(25 ms window, 10 ms shift)--> frames --(16 frames a step)--> steps --(8 frequency bands)--> patches

A clip of 10 s is 160,000 samples, 998 frames, 62 steps of 160 ms and 496 patches. Patches are ordered time-major:
``patch = bands * step + band``. Frames left over behind the last whole step are dropped (BEATs,
arXiv 2212.09058, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

SAMPLE_RATE = 16_000  # Hz; every model of the family
FRAME_LENGTH = 400  # samples: 25 ms
FRAME_SHIFT = 160  # samples: 10 ms
N_MELS = 128
PATCH_SIZE = 16  # frames and mel bins: every published model

Count = TypeVar("Count", int, Tensor)  # one clip's count, or an integer tensor of them


def frames(samples: Count) -> Count:
    """Number of 25 ms frames that fit wholly into ``samples`` samples (Kaldi's ``snip_edges``)."""
    return 1 + (samples - FRAME_LENGTH) // FRAME_SHIFT


@dataclass(frozen=True)
class PatchGrid:
    """How a spectrogram is cut into square patches of ``patch_size`` frames by ``patch_size`` mel bins."""

    patch_size: int = PATCH_SIZE

    @property
    def bands(self) -> int:
        """Patches a step, from low to high frequency: 8 for 16 x 16 patches."""
        return N_MELS // self.patch_size

    @property
    def step_samples(self) -> int:
        """Samples from the start of one step to the start of the next: 2,560 for 16 x 16 patches."""
        return self.patch_size * FRAME_SHIFT

    @property
    def step_seconds(self) -> float:
        """Length of a step in seconds: 0.16 for 16 x 16 patches."""
        return self.step_samples / SAMPLE_RATE

    @property
    def min_samples(self) -> int:
        """The shortest clip with a whole step: 2,800 samples for 16 x 16 patches."""
        return self.samples(1)

    def samples(self, steps: int) -> int:
        """The fewest samples that hold ``steps`` whole steps: 158,960 for 62."""
        return FRAME_LENGTH + (self.patch_size * steps - 1) * FRAME_SHIFT

    def steps(self, samples: Count) -> Count:
        """Whole steps in a clip of ``samples`` samples."""
        return frames(samples) // self.patch_size

    def patches(self, samples: Count) -> Count:
        """Patches that a clip of ``samples`` samples owns; everything behind them in a batch is padding."""
        return self.bands * self.steps(samples)


def mask_behind(counts: Tensor, size: int) -> Tensor:
    """Marks what lies behind each row's own items.

    Args:
        counts: ``(B,)`` integers, how many items each row owns.
        size: how many items the batch is padded to.

    Returns:
        ``(B, size)`` bool, True = padding.
    """
    return torch.arange(size, device=counts.device) >= counts.unsqueeze(1)


def mask_of_groups(mask: Tensor, size: int) -> Tensor:
    """Reduce a mask to equal groups, of which one is padding when all of it is: the research code's rule.

    Args:
        mask: ``(B, L)`` bool with L at least ``size``; what is left over behind the groups is dropped.
        size: number of groups.

    Returns:
        ``(B, size)`` bool.

    Raises:
        ValueError: the mask is too short.
    """
    L = mask.size(1)
    if size > L:
        raise ValueError(f"The mask covers {L} positions, fewer than the {size} of the features it is reduced to.")
    return mask[:, : L - L % size].unflatten(1, (size, -1)).all(-1)
