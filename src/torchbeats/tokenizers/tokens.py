"""What every tokenizer gives: a label for each patch, on the grid of a clip's steps and bands."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchbeats.patches import PatchGrid

PADDING = -1  # stands where a clip has no patch


class Tokens(NamedTuple):
    """Labels of a batch of clips.

    Attributes:
        labels: ``(B, steps, bands)`` int64, low frequencies first; -1 behind a clip's own steps.
        step_counts: ``(B,)`` int64, steps of each clip.
        step_times: ``(steps, 2)`` float64, start and end of each step in seconds.
    """

    labels: Tensor
    step_counts: Tensor
    step_times: Tensor

    @classmethod
    def of(cls, labels: Tensor, grid: PatchGrid) -> Tokens:
        """From ``(B, T)`` labels in the order of the patches, -1 where there is padding."""
        labels = labels.unflatten(1, (-1, grid.bands))
        start = torch.arange(labels.size(1), dtype=torch.float64, device="cpu")
        times = torch.stack([start, start + 1], dim=1) * grid.step_seconds
        return cls(labels, (labels[..., 0] != PADDING).sum(1), times)
